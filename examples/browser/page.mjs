// The form and the canvas. Drawing keeps a processor busy, so a worker does it.

import { labelsInTurn, methods, ranges } from "./sampler.mjs";

const at = (id) => document.getElementById(id);
const worker = new Worker(new URL("worker.mjs", import.meta.url), { type: "module" });
const waiting = new Map();
let asked = 0;
let about;

worker.onmessage = ({ data: { id, result, error } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error === undefined) resolve(result);
  else reject(new Error(error));
};
worker.onerror = ({ message }) => say(message || "the worker could not be started", true);

/** One call of the worker: what it answers. */
function ask(call, argument) {
  const id = asked++;
  worker.postMessage({ id, call, argument });
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

function say(text, isError = false) {
  at("status").textContent = text;
  at("status").classList.toggle("error", isError);
}

/** What the form asks for. */
function request() {
  const seeds = ranges("seeds", at("seeds").value, BigInt);
  const classes = at("classes").value.trim();
  const wanted = classes === "" ? undefined : ranges("classes", classes, Number);
  return {
    seeds,
    classLabels: labelsInTurn(about, seeds, wanted),
    method: at("method").value,
    steps: at("method").selectedOptions[0].dataset.steps ? undefined : Number(at("steps").value),
    guidanceScale: about.null_label === null ? 1 : Number(at("guidance").value),
  };
}

function show({ width, height, channels, pixels }, count) {
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[i * channels + (channels === 1 ? 0 : c)];
    image.data[4 * i + 3] = 255;
  }
  Object.assign(at("images"), { width, height });
  at("images").getContext("2d").putImageData(image, 0, 0);
  at("images").setAttribute("aria-label", `${count} images, drawn`);
}

async function draw(event) {
  event.preventDefault();
  at("draw").disabled = true;
  say("Drawing");
  try {
    const { count, ...picture } = await ask("draw", request());
    show(picture, count);
    say(`${count} images drawn`);
  } catch (error) {
    say(error.message, true);
  }
  at("draw").disabled = false;
}

async function start() {
  try {
    about = await ask("open");
  } catch (error) {
    say(error.message, true);
    return;
  }
  for (const name of methods(about)) {
    const option = new Option(name, name, false, name === about.defaults.method);
    if (!about.methods.includes(name)) option.dataset.steps = "exported"; // a solver walks the rows in the file
    at("method").append(option);
  }
  at("steps").value = about.timesteps.length;
  at("steps").max = about.num_train_timesteps;
  at("of-class").hidden = about.num_classes === null;
  at("of-guidance").hidden = about.null_label === null;
  at("method").onchange = () => {
    at("steps").disabled = Boolean(at("method").selectedOptions[0].dataset.steps);
  };
  at("method").onchange();
  at("form").onsubmit = draw;
  at("draw").disabled = false;
  say("Ready");
}

start();
