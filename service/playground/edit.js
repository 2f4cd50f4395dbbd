// Pictures in, pictures out: an upload and its answer, one laid over the other.
import { ask, curlLine } from "/playground/shared.js";

const at = (id) => document.getElementById(id);
const SMALL_PX = 96;
let shown = []; // object URLs that are on the page
let running = null;

// `changed` is called with a new picture or mask.
export function bindUploads(changed) {
  const drop = at("drop");
  const take = (files) => {
    const file = [...files].find((one) => one.type.startsWith("image/"));
    if (!file) return;
    const given = new DataTransfer();
    given.items.add(file);
    at("image").files = given.files;
    changed();
  };
  for (const name of ["dragenter", "dragover"]) drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => { event.preventDefault(); take(event.dataTransfer.files); });
  document.addEventListener("paste", (event) => { if (!at("upload-field").hidden) take(event.clipboardData.files); });
  for (const id of ["image", "mask"]) at(id).addEventListener("change", changed);
  at("split").addEventListener("input", split);
}

// Stops what is under way: its answer is no longer wanted.
export function stop() {
  running?.abort();
}

export function uploadCurl(task, model, format) {
  const form = { image: `@${at("image").files[0]?.name ?? "photo.jpg"}` };
  if (task === "translate" && model.mask && at("mask").files[0]) form.mask = `@${at("mask").files[0].name}`;
  form.model = model.name;
  if (format !== "png") form.format = format;
  return curlLine("POST", `/${task}`, null, `answer.${format}`, form);
}

// Sends what is chosen; null where nothing is. `say(text, bad)` tells how it went.
export async function edit(task, model, format, say) {
  const [image] = at("image").files, [mask] = at("mask").files;
  at("drop-text").hidden = Boolean(image); // the field names it
  if (!image) return say("Choose a picture: it is sent to this server alone.");
  stop();
  const own = running = new AbortController();
  const form = new FormData();
  form.append("image", image);
  form.append("model", model.name);
  form.append("format", format);
  if (mask && task === "translate" && model.mask) form.append("mask", mask);
  say("Working…");
  const began = performance.now();
  let reply, answer;
  try {
    reply = await ask(`/${task}`, { method: "POST", body: form, signal: own.signal });
    if (!reply.ok) return say((await reply.json()).detail ?? `The server answers ${reply.status}.`, true, reply.status);
    answer = await reply.blob();
  } catch (error) {
    if (error.name !== "AbortError") say("The server does not answer, or broke off.", true);
    return;
  }
  if (own.signal.aborted) return;
  const took = ((performance.now() - began) / 1000).toFixed(2);
  say(`By ${reply.headers.get("x-model") ?? model.name} in ${took} s. The bar below uncovers the picture before.`);
  await show(image, answer, `${model.name}.${format}`);
}

async function show(image, answer, name) {
  shown.forEach(URL.revokeObjectURL);
  shown = [image, answer].map((blob) => URL.createObjectURL(blob));
  [at("before").src, at("after").src] = shown;
  at("compare").hidden = false;
  const sizes = [];
  for (const id of ["before", "after"]) {
    const here = at(id);
    try { await here.decode(); } catch { /* a format that this browser does not show; the answer is whole all the same */ }
    here.classList.toggle("small", here.naturalWidth > 0 && here.naturalWidth <= SMALL_PX);
    if (here.naturalWidth) sizes.push(`${here.naturalWidth}×${here.naturalHeight}`);
  }
  at("sizes").textContent = sizes.join(" → ");
  at("result-save").href = shown[1];
  at("result-save").download = name;
  split();
}

function split() {
  const share = at("split").value;
  at("before").style.clipPath = `inset(0 ${100 - share}% 0 0)`;
  at("edge").style.left = `${share}%`;
}
