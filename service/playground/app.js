// The playground: one request for each change, shown as pictures. State lives in the address bar.
import { bindUploads, edit, stop, uploadCurl } from "/playground/edit.js";
import { ask, curlLine, element, key, picture } from "/playground/shared.js";

const at = (id) => document.getElementById(id);
const PAGE = 12;
const SMALL_PX = 96; // up to this size pixels are shown as squares rather than blurred
const TASKS = { generate: "Draw", translate: "Translate", upscale: "Enlarge" };
const FRAMES = 48;
const state = {
  all: [], task: "generate", model: null, label: null, seeds: "0-11", truncation: 1, format: "png", directions: {}, motion: false,
};
let running = null; // aborts the request that a newer one replaces

async function start() {
  readAddress();
  bind();
  await load();
}

async function load() {
  let reply, answer;
  try {
    reply = await ask("/models");
    answer = await reply.json();
  } catch {
    return say("The server does not answer.", true);
  }
  if (!reply.ok) return say(answer.detail, true, reply.status);
  const known = (task) => Object.hasOwn(TASKS, task);
  state.all = answer.models.filter((model, index, all) =>
    model.tasks.some(known) && all.findIndex((other) => other.name === model.name) === index);
  if (!state.all.length) return wake(answer.asleep ?? []);
  settle();
  render();
  draw();
}

// Models that sleep are loaded by the first request for one; any of them makes the page of use.
async function wake(asleep) {
  const [name] = (asleep[0] ?? "").split("@");
  if (!name) return say("No model is loaded yet. Put an exported model into the models' folder.", true);
  say(`${asleep.length === 1 ? "One model sleeps" : `${asleep.length} models sleep`} until asked for: waking ${name}.`);
  const reply = await ask("/generate", {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ model: name, seed: 0 }),
  }).catch(() => null);
  const answer = await ask("/models").then((one) => one.json()).catch(() => null);
  if (answer?.models?.length) return load();
  say(`Nothing is loaded: ${asleep.join(", ")} sleep until asked for.`, true, reply?.status);
}

// An address may name a task that no model does, or a model that does not do it.
function settle() {
  if (!models().length) state.task = state.all[0].tasks.find((task) => Object.hasOwn(TASKS, task));
  if (!current()) state.model = models()[0].name;
}

const models = () => state.all.filter((model) => model.tasks.includes(state.task));
const current = () => models().find((model) => model.name === state.model);

function bind() {
  at("controls").addEventListener("submit", (event) => { event.preventDefault(); draw(); });
  at("seeds").addEventListener("change", (event) => change({ seeds: event.target.value.trim() || "0" }));
  at("truncation").addEventListener("input", (event) => change({ truncation: Number(event.target.value) }, 60));
  at("format").addEventListener("change", (event) => change({ format: event.target.value }));
  at("shuffle").addEventListener("click", () => change({ seeds: from(Math.floor(Math.random() * (2 ** 32 - PAGE))) }));
  at("previous").addEventListener("click", () => change({ seeds: from(Math.max(0, first() - PAGE)) }));
  at("next").addEventListener("click", () => change({ seeds: from(Math.min(2 ** 32 - PAGE, first() + PAGE)) }));
  at("level").addEventListener("click", () => change({ directions: {} }));
  at("motion").addEventListener("click", () => change({ motion: !state.motion }));
  at("key").addEventListener("change", (event) => { key.set(event.target.value.trim()); load(); });
  bindUploads(() => change({}));
  at("copy").addEventListener("click", copy);
  at("detail-close").addEventListener("click", () => at("detail").close());
  at("detail").addEventListener("click", (event) => { if (event.target === at("detail")) at("detail").close(); });
  window.addEventListener("hashchange", () => { readAddress(); if (state.all.length) { settle(); render(); draw(); } });
  for (const group of ["tasks", "models", "labels"]) at(group).addEventListener("keydown", arrows);
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
  at("tasks").replaceChildren(...Object.entries(TASKS).filter(([task]) => state.all.some((one) => one.tasks.includes(task))).map(
    ([task, name]) => radio("", task === state.task, () => choose(task), name)));
  renderModels();
  const drawing = state.task === "generate";
  for (const id of ["seeds-field", "motion-field"]) at(id).hidden = !drawing;
  at("upload-field").hidden = drawing;
  at("mask-field").hidden = state.task !== "translate" || !model.mask;
  at("pictures").hidden = !drawing;
  if (drawing) at("compare").hidden = true;
  if (!model.labels?.includes(state.label)) state.label = null;
  at("label-field").hidden = !drawing || !model.labels;
  at("labels").replaceChildren(...[null, ...(model.labels ?? [])].map((label) =>
    radio("", label === state.label, () => change({ label }), label ?? "any")));
  at("truncation-field").hidden = !drawing || !model.truncation;
  renderDirections(drawing ? model.steering?.directions ?? [] : []);
  at("seeds").value = state.seeds;
  at("truncation").value = state.truncation;
  at("truncation-value").textContent = state.truncation.toFixed(2);
  at("format").value = state.format;
  at("motion").setAttribute("aria-pressed", state.motion);
  at("format-hint").hidden = !drawing || !state.motion;
  at("curl").textContent = !drawing ? uploadCurl(state.task, model, state.format)
    : moving() ? curlLine("POST", "/interpolate", way(), `${model.name}.webp`)
      : curlLine("POST", "/generate", body({ as: "grid" }), `${model.name}.${state.format}`);
}

let listed = ""; // a list that is the same stays: with a key each sample would be fetched anew
function renderModels() {
  const wanted = JSON.stringify([state.task, state.model, key.get(), ...models().map((one) => one.ref)]);
  if (wanted === listed) return;
  listed = wanted;
  at("models").replaceChildren(...models().map((one) => {
    const sample = element("img", { alt: "", loading: "lazy" });
    sample.addEventListener("error", () => sample.replaceWith(element("span", { className: "blank" })));
    picture(sample, one.links.samples);
    const size = one.image?.width ? `${one.image.width}×${one.image.height}` : "any size";
    const facts = state.task === "generate" ? `${size} · ${one.labels ? `${one.labels.length} labels` : "no labels"}` : one.family;
    const text = element("span", {}, element("b", { textContent: one.name }), element("small", { textContent: facts }));
    return radio("model", one.name === state.model, () => change({ model: one.name, label: null, directions: {} }), sample, text);
  }));
}

function renderDirections(names) {
  at("directions-field").hidden = !names.length;
  const sliders = [...at("directions").children];
  if (sliders.map((one) => one.firstChild.textContent).join() === names.join()) {
    // Those that are there stay: one that is being dragged would be lost.
    for (const [index, name] of names.entries()) {
      const [, slider, value] = sliders[index].children, strength = state.directions[name] ?? 0;
      if (Number(slider.value) !== strength) slider.value = strength;
      value.textContent = strength.toFixed(1);
    }
    return;
  }
  at("directions").replaceChildren(...names.map((name) => {
    const value = element("output", { textContent: (state.directions[name] ?? 0).toFixed(1) });
    const slider = element("input", { type: "range", min: -4, max: 4, step: 0.2, value: state.directions[name] ?? 0 });
    slider.addEventListener("input", () => {
      state.directions = { ...state.directions, [name]: Number(slider.value) };
      value.textContent = Number(slider.value).toFixed(1);
      clearTimeout(pending);
      pending = setTimeout(() => change({}), 60);
    });
    return element("label", {}, element("span", { textContent: name }), slider, value);
  }));
}

function choose(task) {
  state.task = task;
  change(current() ? {} : { model: models()[0].name, label: null, directions: {} });
}

const moving = () => state.task === "generate" && state.motion && !/^\d{1,10}$/.test(state.seeds);

function way() {
  const { as: _, seeds, format: __, ...asked } = body({ as: "json" });
  return { ...asked, seeds, frames: FRAMES, loop: true };
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
  const steered = Object.entries(state.directions).filter(([, strength]) => strength);
  if (steered.length) asked.directions = Object.fromEntries(steered);
  if (state.format !== "png") asked.format = state.format;
  return asked.seed === undefined || extra.as === "json" ? { ...asked, ...extra } : asked;
}

async function draw() {
  running?.abort();
  stop();
  if (state.task !== "generate") return edit(state.task, current(), state.format, say);
  running = new AbortController();
  at("pictures").classList.add("busy");
  const began = performance.now(), moves = moving();
  const path = moves ? "/interpolate" : "/generate", asked = moves ? way() : body({ as: "json" });
  let reply, answer;
  try {
    reply = await ask(path, {
      method: "POST", signal: running.signal, headers: { "content-type": "application/json" }, body: JSON.stringify(asked),
    });
    answer = await (moves && reply.ok ? reply.blob() : reply.json());
  } catch (error) {
    if (error.name !== "AbortError") say("The server does not answer.", true);
    return;
  }
  at("pictures").classList.remove("busy");
  at("seeds").setAttribute("aria-invalid", ["seed", "seeds"].includes(answer.field));
  if (!reply.ok) return say(answer.detail, true, reply.status);
  const ms = (seconds) => `${(seconds * 1000).toFixed(1)} ms`, took = ms((performance.now() - began) / 1000);
  if (moves) {
    say(`${FRAMES} frames by ${state.model} in ${took}.`);
    const shown = element("img", {
      className: current().image.width <= SMALL_PX ? "motion small" : "motion", src: URL.createObjectURL(answer), alt: "The way from seed to seed",
    });
    shown.addEventListener("load", () => URL.revokeObjectURL(shown.src), { once: true });
    return at("pictures").replaceChildren(shown);
  }
  const { run_s, queue_s, encode_s } = answer.timings;
  const count = answer.images.length === 1 ? "1 picture" : `${answer.images.length} pictures`;
  say(`${count} by ${answer.model} in ${took}: waiting ${ms(queue_s)}, running ${ms(run_s)}, encoding ${ms(encode_s)}.`);
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
  const steered = Object.entries(state.directions).filter(([, strength]) => strength);
  if (steered.length) query.set("directions", steered.map((one) => one.join(":")).join(","));
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

function say(text, bad = false, status = 0) {
  if (status === 401) {
    at("key-field").hidden = false;
    at("key").focus();
  }
  at("status").textContent = text;
  at("status").className = bad ? "status bad" : "status";
  at("pictures").classList.remove("busy");
}

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  state.task = Object.hasOwn(TASKS, given.get("task") ?? "") ? given.get("task") : "generate";
  state.model = given.get("model") ?? state.model;
  state.motion = given.has("motion");
  state.label = given.get("label");
  state.seeds = given.get("seeds") ?? state.seeds;
  const truncation = Number(given.get("truncation") ?? 1);
  state.truncation = truncation >= 0 && truncation <= 2 ? truncation : 1;
  state.format = ["jpeg", "webp"].includes(given.get("format")) ? given.get("format") : "png";
}

function writeAddress() {
  const kept = new URLSearchParams({ model: state.model, seeds: state.seeds });
  if (state.task !== "generate") kept.set("task", state.task);
  if (state.motion) kept.set("motion", "");
  if (state.label !== null) kept.set("label", state.label);
  if (state.truncation !== 1) kept.set("truncation", state.truncation);
  if (state.format !== "png") kept.set("format", state.format);
  history.replaceState(null, "", `#${kept}`);
}

start();
