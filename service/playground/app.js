// The playground: one request for each change, answered as JSON, shown as pictures. State lives in the address bar.
import { curlLine, element } from "/playground/shared.js";

const at = (id) => document.getElementById(id);
const PAGE = 12;
const SMALL_PX = 96; // up to this size pixels are shown as squares rather than blurred
const state = { models: [], model: null, label: null, seeds: "0-11", truncation: 1, format: "png" };
let running = null; // aborts the request that a newer one replaces

async function start() {
  readAddress();
  bind();
  try {
    const reply = await fetch("/models");
    state.models = (await reply.json()).models.filter((model) => model.tasks.includes("generate"));
  } catch {
    return say("The server does not answer.", true);
  }
  state.models = state.models.filter((model, index, all) => all.findIndex((other) => other.name === model.name) === index);
  if (!state.models.length) return say("No model is loaded yet. Put an exported model into the models' folder.", true);
  if (!current()) state.model = state.models[0].name;
  render();
  draw();
}

const current = () => state.models.find((model) => model.name === state.model);

function bind() {
  at("controls").addEventListener("submit", (event) => { event.preventDefault(); draw(); });
  at("seeds").addEventListener("change", (event) => change({ seeds: event.target.value.trim() || "0" }));
  at("truncation").addEventListener("input", (event) => change({ truncation: Number(event.target.value) }, 60));
  at("format").addEventListener("change", (event) => change({ format: event.target.value }));
  at("shuffle").addEventListener("click", () => change({ seeds: from(Math.floor(Math.random() * (2 ** 32 - PAGE))) }));
  at("previous").addEventListener("click", () => change({ seeds: from(Math.max(0, first() - PAGE)) }));
  at("next").addEventListener("click", () => change({ seeds: from(Math.min(2 ** 32 - PAGE, first() + PAGE)) }));
  at("copy").addEventListener("click", copy);
  at("detail-close").addEventListener("click", () => at("detail").close());
  at("detail").addEventListener("click", (event) => { if (event.target === at("detail")) at("detail").close(); });
  window.addEventListener("hashchange", () => { readAddress(); render(); draw(); });
  for (const group of ["models", "labels"]) at(group).addEventListener("keydown", arrows);
}

const first = () => Number.parseInt(state.seeds, 10) || 0;
const from = (seed) => `${seed}-${seed + PAGE - 1}`;

let pending;
function change(values, delay = 0) {
  Object.assign(state, values);
  writeAddress();
  render();
  clearTimeout(pending);
  pending = setTimeout(draw, delay);
}

function render() {
  const model = current();
  if (!model) return;
  at("models").replaceChildren(...state.models.map((one) => {
    const picture = element("img", { src: one.links.samples, alt: "", loading: "lazy" });
    picture.addEventListener("error", () => picture.replaceWith(element("span", { className: "blank" })));
    const facts = `${one.image.width}×${one.image.height} · ${one.labels ? `${one.labels.length} labels` : "no labels"}`;
    const text = element("span", {}, element("b", { textContent: one.name }), element("small", { textContent: facts }));
    return radio("model", one.name === state.model, () => change({ model: one.name, label: null }), picture, text);
  }));
  if (!model.labels?.includes(state.label)) state.label = null;
  at("label-field").hidden = !model.labels;
  at("labels").replaceChildren(...[null, ...(model.labels ?? [])].map((label) =>
    radio("", label === state.label, () => change({ label }), label ?? "any")));
  at("truncation-field").hidden = !model.truncation;
  at("seeds").value = state.seeds;
  at("truncation").value = state.truncation;
  at("truncation-value").textContent = state.truncation.toFixed(2);
  at("format").value = state.format;
  at("curl").textContent = curlLine("POST", "/generate", body({ as: "grid" }), `${model.name}.${state.format}`);
}

function radio(className, checked, chosen, ...children) {
  const button = element("button", { type: "button", className }, ...children);
  button.setAttribute("role", "radio");
  button.setAttribute("aria-checked", checked);
  button.tabIndex = checked ? 0 : -1;
  button.addEventListener("click", chosen);
  return button;
}

function arrows(event) {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const group = event.currentTarget, all = [...group.children];
  const next = (all.indexOf(document.activeElement) + step + all.length) % all.length;
  all[next].click();
  group.children[next].focus();
}

function body(extra) {
  const asked = { model: state.model };
  if (state.label !== null) asked.label = state.label;
  if (/^\d{1,10}$/.test(state.seeds)) asked.seed = Number(state.seeds); else asked.seeds = state.seeds;
  if (state.truncation !== 1 && current().truncation) asked.truncation = state.truncation;
  if (state.format !== "png") asked.format = state.format;
  return asked.seed === undefined || extra.as === "json" ? { ...asked, ...extra } : asked;
}

async function draw() {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  at("pictures").classList.add("busy");
  const began = performance.now();
  let reply, answer;
  try {
    reply = await fetch("/generate", {
      method: "POST", signal, headers: { "content-type": "application/json" }, body: JSON.stringify(body({ as: "json" })),
    });
    answer = await reply.json();
  } catch (error) {
    if (error.name !== "AbortError") say("The server does not answer.", true);
    return;
  }
  at("pictures").classList.remove("busy");
  at("seeds").setAttribute("aria-invalid", ["seed", "seeds"].includes(answer.field));
  if (!reply.ok) return say(answer.detail, true);
  const { run_s, queue_s, encode_s } = answer.timings;
  const ms = (seconds) => `${(seconds * 1000).toFixed(1)} ms`;
  const count = answer.images.length === 1 ? "1 picture" : `${answer.images.length} pictures`;
  say(`${count} by ${answer.model} in ${ms((performance.now() - began) / 1000)}: `
    + `waiting ${ms(queue_s)}, running ${ms(run_s)}, encoding ${ms(encode_s)}.`);
  show(answer);
}

function show(answer) {
  const model = current(), small = (model.image.width ?? SMALL_PX) <= SMALL_PX;
  at("pictures").replaceChildren(...answer.images.map((image) => {
    const source = `data:${image.media_type};base64,${image.b64}`;
    const name = [image.label, `seed ${image.seed}`].filter(Boolean).join(", ");
    const caption = element("span", {}, element("b", { textContent: image.label ?? "" }), String(image.seed));
    const tile = element("button", { type: "button", className: small ? "picture small" : "picture", title: name },
      element("img", { src: source, alt: name }), caption);
    tile.addEventListener("click", () => detail(answer, image, source, small));
    return tile;
  }));
}

function detail(answer, image, source, small) {
  const query = new URLSearchParams({ model: answer.model, seed: image.seed });
  if (image.label !== null) query.set("label", image.label);
  if (answer.truncation !== 1) query.set("truncation", answer.truncation);
  if (state.format !== "png") query.set("format", state.format);
  const facts = { Model: answer.model, Seed: image.seed, Label: image.label, Truncation: answer.truncation };
  at("detail-image").src = source;
  at("detail-image").className = small ? "small" : "";
  at("detail-image").alt = [image.label, `seed ${image.seed}`].filter(Boolean).join(", ");
  at("detail-facts").replaceChildren(...Object.entries(facts).filter(([, value]) => value !== null).flatMap(
    ([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: String(value) })]));
  at("detail-link").href = `/generate?${query}`;
  at("detail-save").href = source;
  at("detail-save").download = `${state.model}-${image.seed}.${state.format}`;
  at("detail").showModal();
}

async function copy() {
  const text = at("curl").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no clipboard without https: select it, so that one key press copies
    getSelection().selectAllChildren(at("curl"));
    return;
  }
  at("copy").textContent = "Copied";
  setTimeout(() => { at("copy").textContent = "Copy"; }, 1200);
}

function say(text, bad = false) {
  at("status").textContent = text;
  at("status").className = bad ? "status bad" : "status";
  at("pictures").classList.remove("busy");
}

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  state.model = given.get("model") ?? state.model;
  state.label = given.get("label");
  state.seeds = given.get("seeds") ?? state.seeds;
  const truncation = Number(given.get("truncation") ?? 1);
  state.truncation = truncation >= 0 && truncation <= 2 ? truncation : 1;
  state.format = ["jpeg", "webp"].includes(given.get("format")) ? given.get("format") : "png";
}

function writeAddress() {
  const kept = new URLSearchParams({ model: state.model, seeds: state.seeds });
  if (state.label !== null) kept.set("label", state.label);
  if (state.truncation !== 1) kept.set("truncation", state.truncation);
  if (state.format !== "png") kept.set("format", state.format);
  history.replaceState(null, "", `#${kept}`);
}

start();
