// Draws images with a folder of `fastddpm export` and writes them as one PNG: see README.md.

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { parseArgs } from "node:util";

import * as ort from "onnxruntime-node";

import { BadArgument, Sampler, checkDigest, checked, grid, labelsInTurn, ranges } from "../sampler.mjs";
import { png } from "./png.mjs";

const USAGE =
  "node sample.mjs FOLDER [--seeds 0-9] [--class 0-9] [--method ddim] [--steps 50] [--eta 0] " +
  "[--guidance 1] [--columns 10] [--threads 1] [--out digits.png]";
const OPTIONS = ["seeds", "class", "method", "steps", "eta", "guidance", "columns", "threads", "out"];

/** Opens a folder as a sampler; threads: of a run, 0 for ONNX Runtime's choice. */
async function opened(folder, threads) {
  const about = checked(JSON.parse(await readFile(join(folder, "export.json"), "utf8")));
  const file = join(folder, "sampler.onnx");
  const hash = createHash("sha256");
  await pipeline(createReadStream(file), hash);
  checkDigest(about, hash.digest("hex"));
  const session = await ort.InferenceSession.create(file, { intraOpNumThreads: threads, logSeverityLevel: 3 });
  return new Sampler(ort, session, about);
}

function number(name, text, fallback) {
  if (text === undefined) return fallback;
  const value = text.trim() === "" ? NaN : Number(text);
  if (!Number.isFinite(value)) throw new BadArgument(`--${name}`, `'${text}'`, "a number");
  return value;
}

function whole(name, text, fallback, least) {
  const value = number(name, text, fallback);
  if (!Number.isInteger(value) || value < least) {
    throw new BadArgument(`--${name}`, `'${text}'`, `an integer of ${least} or more`);
  }
  return value;
}

async function main() {
  const options = Object.fromEntries(OPTIONS.map((name) => [name, { type: "string" }]));
  const { values, positionals } = parseArgs({ options, allowPositionals: true });
  if (positionals.length !== 1) throw new BadArgument("FOLDER", `${positionals.length} folders`, USAGE);
  const seeds = ranges("--seeds", values.seeds ?? "0-9", BigInt);
  const columns = whole("columns", values.columns, Math.ceil(Math.sqrt(seeds.length)), 1);
  const sampler = await opened(positionals[0], whole("threads", values.threads, 0, 0));
  const wanted = values.class === undefined ? undefined : ranges("--class", values.class, Number);
  const images = await sampler.draw({
    seeds,
    classLabels: labelsInTurn(sampler.about, seeds, wanted),
    method: values.method,
    steps: number("steps", values.steps),
    eta: number("eta", values.eta),
    guidanceScale: number("guidance", values.guidance, 1),
  });
  const out = values.out ?? "images.png";
  const temporary = `${out}.${process.pid}.tmp`;
  try {
    await writeFile(temporary, png(grid(images, Math.min(columns, seeds.length))));
    await rename(temporary, out);
  } finally {
    await rm(temporary, { force: true });
  }
  console.log(`${out}: ${images.count} images of ${images.width}x${images.height}`);
}

try {
  await main();
} catch (error) {
  console.error(error instanceof BadArgument ? error.message : `${error.name}: ${error.message}`);
  process.exitCode = 1;
}
