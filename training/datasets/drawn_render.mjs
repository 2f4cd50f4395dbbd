// Renders a range of drawings as raw pixels: one line of JSON on stdin says what, one line per shard on stdout says done.
//
// `order.style` is a module whose `load` gives a function from a seed and its stream of random numbers to an SVG and a
// line of attributes. Every drawing has its own seed and its own stream, so it does not depend on the others, on their
// order, or on how many processes draw. Rasterising with WebAssembly gives the same bits on every machine.
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const order = JSON.parse(fs.readFileSync(0, "utf8"));
const { modules, shards, size, oversample, background } = order;
const from = (file) => import(pathToFileURL(path.join(modules, file)).href);
const { load } = await import(pathToFileURL(order.style).href);
const draw = await load(from, order);
const { initWasm, Resvg } = createRequire(path.join(modules, "x.js"))("@resvg/resvg-wasm");
await initWasm(fs.readFileSync(path.join(modules, "@resvg/resvg-wasm/index_bg.wasm")));

// mulberry32: a 32-bit counter through an integer mixer, numbers in [0, 1).
function stream(seed) {
  let state = Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b) >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function rasterise(svg) {
  const width = size * oversample;
  const resvg = new Resvg(svg, { fitTo: { mode: "width", value: width }, background, font: { loadSystemFonts: false } });
  const image = resvg.render();
  const pixels = image.pixels;
  if (image.width !== width || image.height !== width) throw new Error(`rendered ${image.width}x${image.height}`);
  image.free();
  resvg.free();
  return pixels;
}

// Mean over oversample x oversample blocks: area filtering with integer sums, alpha dropped (the background is opaque).
function shrink(pixels, out, offset) {
  const width = size * oversample;
  const count = oversample * oversample;
  for (let y = 0; y < size; y++)
    for (let x = 0; x < size; x++)
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let j = 0; j < oversample; j++)
          for (let i = 0; i < oversample; i++) sum += pixels[((y * oversample + j) * width + x * oversample + i) * 4 + c];
        out[offset++] = Math.floor((sum + count / 2) / count);
      }
}

for (const { target, seeds } of shards) {
  const out = new Uint8Array(seeds.length * size * size * 3);
  const lines = [];
  seeds.forEach((seed, index) => {
    const { svg, attributes } = draw(seed, stream(seed));
    shrink(rasterise(svg), out, index * size * size * 3);
    lines.push(JSON.stringify(attributes) + "\n");
  });
  fs.writeFileSync(`${target}.jsonl`, lines.join(""));
  fs.writeFileSync(`${target}.rgb.tmp`, out);
  fs.renameSync(`${target}.rgb.tmp`, `${target}.rgb`);
  process.stdout.write(`${seeds.length}\n`);
}
