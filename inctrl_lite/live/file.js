// Detector files: what AnomalyDetector.save writes and AnomalyDetector.load reads (detector_file.py).
// A safetensors file: 8 bytes (length of the index), the index in JSON, then the numbers of all tensors.

import { join, sigmoid, stage } from "./method.js";

export class FileError extends Error {}

// The file of a detector that was fitted on this page.
export async function write({ detector, normals, category, threshold, region }) {
  const { page, limits, normalScores } = detector, shots = normals.length;
  const named = async ({ name, input }) => ({ name, digest: await digest(input.data) });
  const moved = threshold !== detector.threshold; // by the reader
  const about = {
    format: 1,
    version: page.version,
    model: page.model,
    backbone: page.backbone,
    categories: [{
      name: category, shots, threshold,
      threshold_source: moved ? "moved by hand in the browser" : detector.thresholdSource,
      expected_rate: moved ? null : detector.expectedRate,
      normal_scores: normalScores,
      normal_images: await Promise.all(normals.map(named)),
      limits, map_grid: page.map_grid, stage_grids: page.stage_grids, region_grid: null,
      view: { preprocessor: page.preprocessor, tiles: [1, 1], bits: null },
    }],
  };
  const each = normals.map((n) => n.features), tensors = {};
  for (const [name, { shape, values }] of Object.entries(page.tensors)) {
    tensors[`model.${name}`] = { shape, data: new Float32Array(values) };
  }
  const add = (name, shape, data) => { tensors[`categories.0.${name}`] = { shape, data }; };
  page.stage_grids.forEach(([rows, columns], i) => add(`stages.${i}.tokens`,
    [1, shots, rows * columns, page.model.stage_widths[i]], join(each.map((f) => f.stages[i].tokens))));
  add("global_embedding", [1, shots, page.model.embed_dim], join(each.map((f) => f.embedding)));
  add("normal_level", [1, 1], new Float32Array([detector.level]));
  if (region) add("region", [region.height, region.width], region.mask);
  return pack(tensors, JSON.stringify(about));
}

// What can be scored with a file: a detector as `fit` makes it, and more.
export async function read(buffer, model) {
  const { about, tensors } = unpack(buffer), { page } = model;
  if (about.format !== page.format) fail(`It has format ${about.format}, and the page reads ${page.format}.`);
  const record = about.categories[0], view = record.view, [rows, columns] = view.preprocessor.size;
  if (about.backbone.digest !== page.backbone.digest) fail("It was fitted with another network than this page's.");
  if (view.tiles.join() !== "1,1") fail("It looks at pictures in tiles, which this page cannot do.");
  const squeezed = view.preprocessor.mode === "squeeze";
  if (rows !== page.size || columns !== page.size || !squeezed) fail("It looks at pictures in another size.");
  for (const [name, { values }] of Object.entries(page.tensors)) {
    const own = tensors[`model.${name}`]?.data;
    const other = !own || values.some((value, i) => Math.fround(value) !== own[i]);
    if (other) fail("It holds another trained model than this page.");
  }
  const of = (name) => tensors[`categories.0.${name}`];
  const banks = page.stage_grids.map(([h, w], i) => {
    const { data, shape } = of(`stages.${i}.tokens`);
    return stage(data, [shape[1] * h, w]).unit;
  });
  return {
    category: record.name, shots: record.shots, region: regionOf(of("region")),
    more: about.categories.length - 1,
    detector: {
      ...model, banks, level: of("normal_level").data[0],
      limits: record.limits, normalScores: record.normal_scores,
      threshold: record.threshold, thresholdSource: record.threshold_source, expectedRate: record.expected_rate,
    },
  };
}

// A region as shares of the picture (left, top, right, bottom), or null.
function regionOf(tensor) {
  if (!tensor) return null;
  const [rows, columns] = tensor.shape, mask = tensor.data;
  let [left, top, right, bottom, count] = [columns, rows, 0, 0, 0];
  mask.forEach((value, n) => {
    if (!value) return;
    const y = Math.floor(n / columns), x = n % columns;
    [left, top] = [Math.min(left, x), Math.min(top, y)];
    [right, bottom] = [Math.max(right, x + 1), Math.max(bottom, y + 1)];
    count += 1;
  });
  if (count !== (right - left) * (bottom - top)) fail("Its region is no rectangle, as it must be here.");
  return [left / columns, top / rows, right / columns, bottom / rows];
}

function fail(reason) {
  throw new FileError(`This detector file cannot be used here. ${reason}`);
}

async function pack(tensors, text) {
  const names = Object.keys(tensors).sort();
  const bytes = names.map((name) => new Uint8Array(tensors[name].data.buffer.slice(0)));
  const metadata = { inctrl_lite: text };
  if (globalThis.crypto?.subtle) metadata.sha256 = await hash([new TextEncoder().encode(text), ...bytes], 32);
  const index = { __metadata__: metadata };
  // four-byte numbers first, as safetensors wants them aligned
  const order = names.map((_, i) => i).sort((a, b) => width(b) - width(a));
  function width(i) { return tensors[names[i]].data.BYTES_PER_ELEMENT; }
  let at = 0;
  for (const i of order) {
    const dtype = width(i) === 4 ? "F32" : "U8";
    index[names[i]] = { dtype, shape: tensors[names[i]].shape, data_offsets: [at, (at += bytes[i].length)] };
  }
  const encoded = (string) => new TextEncoder().encode(string), bare = JSON.stringify(index);
  const header = encoded(bare + " ".repeat((8 - (encoded(bare).length % 8)) % 8));
  const length = new Uint8Array(new BigUint64Array([BigInt(header.length)]).buffer);
  return new Blob([length, header, ...order.map((i) => bytes[i])], { type: "application/octet-stream" });
}

function unpack(buffer) {
  try {
    const length = Number(new DataView(buffer).getBigUint64(0, true));
    if (length > buffer.byteLength - 8) throw new Error("too short");
    const index = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
    const about = JSON.parse(index.__metadata__.inctrl_lite);
    delete index.__metadata__;
    const tensors = {};
    for (const [name, { dtype, shape, data_offsets: [start, end] }] of Object.entries(index)) {
      const part = buffer.slice(8 + length + start, 8 + length + end);
      if (part.byteLength !== end - start) throw new Error("too short");
      tensors[name] = { shape, data: dtype === "F32" ? new Float32Array(part) : new Uint8Array(part) };
    }
    return { about, tensors };
  } catch {
    throw new FileError("This is no detector file, or it is damaged. A detector file ends in .inctrl.");
  }
}

async function hash(parts, length) {
  const found = await crypto.subtle.digest("SHA-256", await new Blob(parts).arrayBuffer());
  return hexadecimal(new Uint8Array(found, 0, length));
}

const hexadecimal = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

// Sixteen bytes that name a picture.
async function digest(data) {
  if (globalThis.crypto?.subtle) return hash([data], 16);
  return hexadecimal(crypto.getRandomValues(new Uint8Array(16)));
}

// The threshold that a reader chooses: so many steps to either side of the detector's own.
export function moved(threshold, steps) {
  if (threshold === null || !steps) return threshold;
  const safe = Math.min(1 - 1e-6, Math.max(1e-6, threshold));
  return sigmoid(Math.log(safe / (1 - safe)) - 0.25 * steps);
}
