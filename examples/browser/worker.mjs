// The sampler, in a thread of its own: messages {id, call, argument} in, {id, result} or {id, error} out.

import * as ort from "./ort/ort.wasm.bundle.min.mjs";
import { Sampler, checkDigest, checked, grid } from "./sampler.mjs";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
let sampler;

const calls = {
  async open() {
    const about = checked(await (await fetched("model/export.json")).json());
    const file = await (await fetched("model/sampler.onnx")).arrayBuffer();
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", file));
    checkDigest(about, Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join(""));
    const session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"], logSeverityLevel: 3 });
    sampler = new Sampler(ort, session, about);
    return about;
  },

  async draw(request) {
    const images = await sampler.draw(request);
    return { count: images.count, ...grid(images, Math.min(images.count, 10)) };
  },
};

async function fetched(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: ${response.status} ${response.statusText}`);
  return response;
}

onmessage = async ({ data: { id, call, argument } }) => {
  try {
    postMessage({ id, result: await calls[call](argument) });
  } catch (error) {
    postMessage({ id, error: error.message });
  }
};
