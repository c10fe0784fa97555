// The form, the images as they form, and the plots of what the service does.

import { conditionOf } from "/static/picture.js";
import { eventsOf, inferred, jsonWithSeeds, refusalOf } from "/static/requests.js";
import { plotLoad } from "/static/load.js";
import { seedsOf } from "/static/seeds.js";

const at = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");
const PREVIEWS = 16; // of an image, at most
let models = [];
let stop = null;

const model = () => models.find(({ name }) => name === at("model").value);

function say(text, isError = false) {
  at("status").textContent = text;
  at("status").classList.toggle("error", isError);
}

/** What the form asks for, but for the seeds. */
function fields(seeds) {
  const { name, classes, methods_with_eta: noisy } = model();
  const label = at("class").value;
  const labels = { none: () => null, turn: (seed) => Number(seed % BigInt(classes)) }[label] ?? (() => Number(label));
  const found = {
    model: name,
    class_labels: classes === null ? null : seeds.map(labels),
    method: at("method").value,
    num_inference_steps: Number(at("steps").value),
    guidance_scale: at("for-guidance").hidden ? 1 : Number(at("guidance").value),
  };
  if (noisy.includes(found.method)) found.eta = Number(at("eta").value);
  if (at("previews").checked) found.preview_every = Math.max(1, Math.ceil((found.num_inference_steps || 1) / PREVIEWS));
  return found;
}

/** Empty places for images; each is a picture, its progress and what it is of. */
function places(seeds, labels) {
  const names = model().class_names;
  at("images").replaceChildren();
  return seeds.map((seed, i) => {
    const item = document.createElement("li");
    const link = document.createElement("a");
    const bar = document.createElement("progress");
    const what = document.createElement("div");
    const label = labels?.[i] ?? null;
    const words = label === null ? `seed ${seed}` : `seed ${seed}, class ${names?.[label] ?? label}`;
    link.append(Object.assign(document.createElement("div"), { className: "empty" }));
    Object.assign(bar, { value: 0, max: 1 });
    bar.setAttribute("aria-label", `Progress of ${words}`);
    Object.assign(what, { className: "what", textContent: words });
    item.append(link, bar, what);
    at("images").append(item);
    return { link, bar, what, words };
  });
}

function show(place, source, words) {
  let image = place.link.querySelector("img");
  if (image === null) {
    image = document.createElement("img");
    place.link.replaceChildren(image);
  }
  image.src = source;
  image.alt = words;
}

/** The address of an image, which is the same for ever. */
function addressOf(seed, asked, label) {
  const query = new URLSearchParams({ model: asked.model, method: asked.method, steps: asked.num_inference_steps });
  if (label !== null) query.set("class", label);
  if (asked.eta !== undefined) query.set("eta", asked.eta);
  if (asked.guidance_scale !== 1) query.set("guidance_scale", asked.guidance_scale);
  return `/v1/images/${seed}.png?${query}`;
}

/** Shows the events of a request; how many images came. */
async function follow(seeds, asked, signal) {
  const drawn = places(seeds, asked.class_labels);
  const body = jsonWithSeeds({ ...asked, stream: true }, seeds);
  let came = 0;
  for await (const [name, about] of eventsOf("/v1/images/generations", body, signal)) {
    const place = drawn[about.index];
    if (name === "progress") place.bar.value = about.share;
    if (name === "preview") show(place, `data:image/png;base64,${about.b64_json}`, `${place.words}, forming`);
    if (name === "image") {
      const label = asked.class_labels?.[about.index] ?? null;
      show(place, `data:image/png;base64,${about.b64_json}`, place.words);
      place.link.href = addressOf(seeds[about.index], asked, label);
      place.bar.remove();
      came += 1;
      say(`${came} of ${seeds.length} images drawn`);
    }
    if (name === "error") {
      place.bar.remove();
      place.what.textContent = `${place.words}: ${about.error}`;
    }
  }
  return came;
}

/** Draws with a picture as the condition, which streams do not take. */
async function restore(seeds, asked, signal) {
  const file = at("picture").files[0];
  if (file === undefined) throw new Error("picture: none given, an image file accepted");
  const condition = await conditionOf(file, model().condition);
  const drawn = places(seeds, asked.class_labels);
  const pictures = await inferred(asked, seeds, { data: condition, shape: [1, ...model().condition] }, signal);
  pictures.forEach((source, i) => {
    show(drawn[i], source, drawn[i].words);
    drawn[i].bar.remove();
  });
  return pictures.length;
}

async function draw(event) {
  event.preventDefault();
  stop = new AbortController();
  at("draw").disabled = true;
  at("stop").disabled = false;
  at("images").setAttribute("aria-busy", "true");
  try {
    const seeds = seedsOf(at("seeds").value, model().limits.images);
    const way = model().condition === null ? follow : restore;
    say(`Drawing ${seeds.length} images`);
    const came = await way(seeds, fields(seeds), stop.signal);
    say(`${came} of ${seeds.length} images drawn, done`, came < seeds.length);
  } catch (error) {
    stop.abort(); // whatever is still on its way
    say(error.name === "AbortError" ? "Stopped" : error.message, error.name !== "AbortError");
  }
  at("images").removeAttribute("aria-busy");
  at("draw").disabled = false;
  at("stop").disabled = true;
}

/** Has the form show what a model takes. */
function fit() {
  const { classes, class_names: names, guidance, condition, methods, defaults, limits } = model();
  at("for-class").hidden = classes === null;
  const labels = [...Array(classes ?? 0).keys()].map((label) => new Option(names?.[label] ?? label, label));
  at("class").replaceChildren(new Option("all, in turn", "turn"), ...labels);
  if (guidance) at("class").append(new Option("none", "none"));
  at("method").replaceChildren(...methods.map((name) => new Option(name, name)));
  at("method").value = defaults.method;
  Object.assign(at("steps"), { value: defaults.num_inference_steps, max: limits.steps });
  at("eta").value = defaults.eta;
  at("for-guidance").hidden = !guidance;
  at("for-picture").hidden = condition === null;
  at("previews").closest("label").hidden = condition !== null;
  fitMethod();
}

function fitMethod() {
  at("for-eta").hidden = !model().methods_with_eta.includes(at("method").value);
}

/** A picture may be dropped anywhere. */
function takeDrops() {
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    if (at("for-picture").hidden || event.dataTransfer.files.length === 0) return;
    at("picture").files = event.dataTransfer.files;
    say(`${event.dataTransfer.files[0].name} is the picture`);
  });
}

async function start() {
  const answer = await fetch("/v1/models");
  if (!answer.ok) throw new Error(await refusalOf(answer));
  models = (await answer.json()).models;
  at("model").replaceChildren(...models.map(({ name }) => new Option(name, name)));
  at("model").closest("label").hidden = models.length === 1;
  at("previews").checked = !still.matches;
  at("model").onchange = fit;
  at("method").onchange = fitMethod;
  at("form").onsubmit = draw;
  at("stop").onclick = () => stop?.abort();
  fit();
  takeDrops();
  plotLoad(() => at("model").value);
  at("draw").disabled = false;
  say("Ready");
}

start().catch((error) => say(error.message, true));
