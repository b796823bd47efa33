// The network runs here, beside the page, so that the page never stands still.

import { encode } from "./method.js";

let network = null; // a promise: pictures that come before it is there wait for it

onmessage = async ({ data: { id, load, picture } }) => {
  try {
    if (load) network = start(load, id);
    postMessage({ id, features: await encode(await network, picture ?? empty(load.size)) });
  } catch (error) {
    postMessage({ id, error: String(error?.message ?? error) });
  }
};

async function start({ files, grids, threads }, id) {
  const ort = await import(files.script.url);
  const [wasm, weights] = [await fetched(files.wasm, id), await fetched(files.encoder, id)];
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.wasmPaths = { mjs: files.module.url };
  ort.env.wasm.numThreads = threads;
  const session = await ort.InferenceSession.create(weights, { executionProviders: ["wasm"] });
  return { grids, Tensor: ort.Tensor, run: (inputs) => session.run(inputs) };
}

// A file, with news of how much of it has come.
async function fetched({ url }, id) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  const parts = [], reader = response.body.getReader();
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    parts.push(value);
    postMessage({ id, loaded: value.length });
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

// A first picture warms the network up.
function empty(size) {
  return { data: new Uint8Array(size * size * 3), width: size, height: size };
}
