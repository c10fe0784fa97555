// Serves the page, ONNX Runtime and one folder of `fastddpm export`, to this machine alone: see README.md.

import { createReadStream } from "node:fs";
import { access, stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join } from "node:path";
import { pipeline } from "node:stream/promises";
import { fileURLToPath } from "node:url";

const HERE = fileURLToPath(new URL(".", import.meta.url));
const ORT = join(HERE, "node_modules", "onnxruntime-web", "dist");
const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".mjs": "text/javascript; charset=utf-8",
  ".json": "application/json",
  ".wasm": "application/wasm",
  ".onnx": "application/octet-stream",
};
// Nothing is asked of another place; the two Cross-Origin lines let WebAssembly have threads.
const HEADERS = {
  "Content-Security-Policy":
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; connect-src 'self'; " +
    "style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "X-Content-Type-Options": "nosniff",
  "Cache-Control": "no-cache",
};

/** Every path that is served, and its file. */
function served(model) {
  const files = { "/": join(HERE, "index.html"), "/sampler.mjs": join(HERE, "..", "sampler.mjs") };
  for (const name of ["page.css", "page.mjs", "worker.mjs"]) files[`/${name}`] = join(HERE, name);
  for (const name of ["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"]) {
    files[`/ort/${name}`] = join(ORT, name);
  }
  for (const name of ["export.json", "sampler.onnx"]) files[`/model/${name}`] = join(model, name);
  return files;
}

async function answer(files, request, response) {
  const file = files[request.url.split("?")[0]];
  if (file === undefined || !["GET", "HEAD"].includes(request.method)) {
    response.writeHead(file === undefined ? 404 : 405, HEADERS).end();
    return;
  }
  const { size } = await stat(file);
  response.writeHead(200, { ...HEADERS, "Content-Type": TYPES[extname(file)], "Content-Length": size });
  if (request.method === "HEAD") response.end();
  else await pipeline(createReadStream(file), response);
}

const [model, port = "8000"] = process.argv.slice(2);
if (model === undefined || !/^\d+$/.test(port) || Number(port) > 65535) {
  console.error("node server.mjs FOLDER [PORT]: a folder of `fastddpm export`, and a port from 0 to 65535");
  process.exit(1);
}
const files = served(model);
for (const file of Object.values(files)) {
  try {
    await access(file);
  } catch {
    console.error(`${file}: missing; \`npm ci\` here, and a folder of \`fastddpm export\`, accepted`);
    process.exit(1);
  }
}
const server = createServer((request, response) => {
  answer(files, request, response).catch(() => response.destroy());
});
server.on("error", (error) => {
  console.error(error.message);
  process.exit(1);
});
server.listen(Number(port), "127.0.0.1", () => console.log(`http://localhost:${server.address().port}/`));
