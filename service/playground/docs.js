// The API reference: /openapi.json as a page, with a curl line for each call.
import { curlLine, element } from "/playground/shared.js";

const main = document.getElementById("reference");
let schemas = {};

async function start() {
  const api = await (await fetch("/openapi.json")).json();
  schemas = api.components?.schemas ?? {};
  const operations = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method, operation })));
  const drawing = operations.filter((one) => one.path === "/generate");
  const models = operations.filter((one) => one.path.startsWith("/models"));
  const rest = operations.filter((one) => !drawing.includes(one) && !models.includes(one));
  main.replaceChildren(
    element("h1", { textContent: `${api.info.title} ${api.info.version}` }),
    element("p", {}, api.info.description + " ", element("a", { href: "/openapi.json", textContent: "openapi.json" })),
    ...section("Images", drawing), ...section("Models", models), ...section("Operation", rest),
    element("h2", { textContent: "Errors" }),
    element("p", { textContent: "Every error is application/problem+json (RFC 9457):" }),
    fields(schemas.Problem),
  );
}

const section = (title, operations) => [element("h2", { textContent: title }), ...operations.map(card)];

function card({ path, method, operation }) {
  const head = element("summary", {},
    element("span", { className: `method ${method}`, textContent: method.toUpperCase() }),
    element("code", { textContent: path }), element("span", { className: "what", textContent: operation.summary }));
  const inside = element("div", { className: "inside" }, element("p", {}, prose(operation.description)));
  const schema = follow(operation.requestBody?.content?.["application/json"]?.schema);
  if (schema) inside.append(element("h3", { textContent: "JSON body" }), fields(schema));
  if (operation.parameters?.length) {
    inside.append(element("h3", { textContent: "Parameters" }), table(["Name", "In", "Type", ""], operation.parameters.map(
      (one) => [code(one.name + (one.required ? " *" : "")), one.in, type(one.schema), prose(one.description)])));
  }
  inside.append(element("h3", { textContent: "Call" }), element("pre", { textContent: example(path, method) }));
  inside.append(element("h3", { textContent: "Answers" }), table(["Status", "", "Type"], Object.entries(operation.responses).map(
    ([status, reply]) => [code(status), prose(reply.description), Object.keys(reply.content ?? {}).join(", ")])));
  return element("details", { className: "operation", open: method === "post" && path === "/generate" }, head, inside);
}

const UPLOADS = {
  "/translate": { model: "photo-weather" }, "/upscale": { model: "photo-x4" }, "/project": { model: "faces-64", as: "image" },
};

function example(path, method) {
  const there = path.replace("{name}", "fashion-28");
  if (method === "get" && path === "/generate") return curlLine("GET", `${there}?model=fashion-28&label=Sneaker&seed=7`, null, "sneaker.png");
  if (path === "/interpolate") {
    return method === "get" ? curlLine("GET", `${there}?model=fashion-28&seeds=1,5,9&label=Sneaker`, null, "way.webp")
      : curlLine("POST", there, { model: "fashion-28", label: "Sneaker", seeds: "1,5,9" }, "way.webp");
  }
  if (UPLOADS[path]) return curlLine("POST", there, null, "answer.png", { image: "@photo.jpg", ...UPLOADS[path] });
  if (path === "/generate") return curlLine("POST", there, { model: "fashion-28", label: "Sneaker", seed: 7 }, "sneaker.png");
  return curlLine(method.toUpperCase(), there, null, path.endsWith(".png") ? "samples.png" : null);
}

const follow = (schema) => (schema?.$ref ? schemas[schema.$ref.split("/").pop()] : schema);
const prose = (text = "") => element("span", {}, ...text.split("`").map((part, index) => (index % 2 ? code(part) : part)));
const code = (text) => element("code", { textContent: text });

function fields(schema) {
  const required = schema.required ?? [];
  return table(["Field", "Type", ""], Object.entries(schema.properties).map(([name, one]) =>
    [code(name + (required.includes(name) ? " *" : "")), type(one), prose(one.description)]));
}

function type(schema = {}) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.anyOf) return schema.anyOf.filter((one) => one.type !== "null").map(type).join(" or ");
  if (schema.type === "array") return `[${type(schema.items)}]`;
  const { minimum: low, maximum: high } = schema;
  const range = low === undefined ? "" : high === undefined ? ` ≥ ${low}` : ` ${low} to ${high}`;
  return (schema.type ?? "any") + range + (schema.default === undefined || schema.default === null ? "" : `, else ${schema.default}`);
}

function table(head, rows) {
  const body = rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, cell))));
  const top = element("tr", {}, ...head.map((name) => element("th", { textContent: name })));
  return element("div", { className: "wide" }, element("table", {}, element("thead", {}, top), element("tbody", {}, ...body)));
}

start();
