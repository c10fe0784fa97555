// A folder of `fastddpm export` as a sampler, for any ONNX Runtime of JavaScript: what it is asked for is checked and
// made into the inputs of sampler.onnx (docs/onnx.md). It knows neither files nor pages; examples/node and
// examples/browser bring these.

const MAX_SEED = 2n ** 63n - 1n;
const FORMAT = { format: "fastddpm-onnx", version: 1, noise_spec: 1 };

/** An argument that is not accepted: its name, what was given, what is accepted. */
export class BadArgument extends Error {
  constructor(name, given, accepted) {
    super(`${name}: ${given} given, ${accepted} accepted`);
    this.name = "BadArgument";
  }
}

export class Sampler {
  /**
   * @param ort the module onnxruntime-node or onnxruntime-web.
   * @param session an InferenceSession of sampler.onnx.
   * @param about the content of export.json, as `checked` accepts it.
   */
  constructor(ort, session, about) {
    this.ort = ort;
    this.session = session;
    this.about = about;
  }

  /**
   * Draws images: {width, height, channels, count, pixels}, pixels uint8 [count, height, width, channels].
   *
   * seeds: bigints in [0, 2^63), one an image. classLabels: a number for each, or undefined for no class.
   * method, steps, eta: undefined for what was exported. guidanceScale: 1 for none.
   */
  async draw({ seeds, classLabels, guidanceScale = 1, ...options }) {
    const { Tensor } = this.ort;
    if (seeds.length === 0 || seeds.some((seed) => seed < 0n || seed > MAX_SEED)) {
      throw new BadArgument("seeds", `[${seeds}]`, "one or more integers from 0 to 2^63 - 1");
    }
    const { method, timesteps, eta } = plan(this.about, options);
    const feeds = {
      seeds: new Tensor("int64", BigInt64Array.from(seeds), [seeds.length]),
      timesteps: new Tensor("int64", BigInt64Array.from(timesteps, BigInt), [timesteps.length]),
      method: new Tensor("int64", BigInt64Array.of(BigInt(method)), []),
      eta: new Tensor("float32", Float32Array.of(eta), []),
    };
    const labels = this.labels(classLabels, seeds.length);
    if (labels !== undefined) {
      feeds.class_labels = new Tensor("int64", BigInt64Array.from(labels, BigInt), [labels.length]);
    }
    if (this.about.null_label !== null) {
      if (!Number.isFinite(guidanceScale)) throw new BadArgument("guidance", guidanceScale, "a number");
      feeds.guidance_scale = new Tensor("float32", Float32Array.of(guidanceScale), []);
    } else if (guidanceScale !== 1) {
      throw new BadArgument("guidance", `${guidanceScale} with a model without a null label`, "1");
    }
    const { pixels } = await this.session.run(feeds, ["pixels"]);
    const [count, height, width, channels] = pixels.dims;
    return { count, height, width, channels, pixels: pixels.data };
  }

  /** A label for each image; undefined of a model without classes. */
  labels(given, count) {
    const { num_classes: classes, null_label: none } = this.about;
    if (classes === null) {
      if (given !== undefined) throw new BadArgument("class", `[${given}] with a model without classes`, "no value");
      return undefined;
    }
    if (given === undefined) {
      if (none === null) throw new BadArgument("class", "none", `labels from 0 to ${classes - 1}`);
      return Array(count).fill(none);
    }
    const known = (label) => Number.isInteger(label) && ((label >= 0 && label < classes) || label === none);
    if (given.length !== count || !given.every(known)) {
      throw new BadArgument("class", `[${given}] for ${count} images`, `a label from 0 to ${classes - 1} for each`);
    }
    return given;
  }
}

/** The content of export.json, if a sampler can be made of it. */
export function checked(about) {
  for (const [key, accepted] of Object.entries(FORMAT)) {
    if (about?.[key] !== accepted) {
      throw new BadArgument("export.json", `${key} ${about?.[key]}`, `${key} ${accepted}`);
    }
  }
  if (about.image_shape.length !== 3 || ![1, 3].includes(about.image_shape[0])) {
    throw new BadArgument("export.json", `states of shape [${about.image_shape}]`, "images of 1 or 3 channels");
  }
  if (about.condition_channels || about.cond?.length) {
    throw new BadArgument("export.json", "a model that is given conditions", "one that draws from seeds and classes");
  }
  return about;
}

/** Refuses a sampler.onnx that is not the one of export.json. digest: its SHA-256 in hexadecimal. */
export function checkDigest(about, digest) {
  const exported = about.files["sampler.onnx"].sha256;
  if (digest !== exported) {
    throw new BadArgument("sampler.onnx", `a file of sha256 ${digest}`, `the one of export.json, ${exported},`);
  }
}

/** The names of methods that a folder's sampler.onnx draws by from here: its formulas, and what was exported. */
export function methods(about) {
  return [...new Set([...about.methods, about.defaults.method])];
}

/** What sampler.onnx is told of a method: its number, timesteps and eta. */
export function plan(about, { method, steps, eta } = {}) {
  const { defaults, methods: formulas } = about;
  const name = method ?? defaults.method;
  if (!methods(about).includes(name)) throw new BadArgument("method", name, methods(about).join(", "));
  if (!formulas.includes(name)) {
    // A solver: its rows, as exported, are in the file, and are walked where no others are given.
    if (steps !== undefined && steps !== about.timesteps.length) {
      throw new BadArgument("steps", `${steps} with ${name}`, `the ${about.timesteps.length} that were exported`);
    }
    if (eta !== undefined) throw new BadArgument("eta", `${eta} with ${name}`, "no value");
    return { method: formulas.length, timesteps: [], eta: 0 };
  }
  const strength = eta ?? (name === defaults.method ? defaults.eta : 0);
  if (!(strength >= 0 && strength <= 1) || (name !== "ddim" && strength !== 0)) {
    throw new BadArgument("eta", `${strength} with ${name}`, "0, or up to 1 with ddim");
  }
  const listed = defaults.timesteps !== null; // by hand, which another method keeps
  const own = steps === undefined && (listed || name === defaults.method);
  const timesteps = own ? about.timesteps : spaced(about, name, steps ?? about.timesteps.length);
  return { method: formulas.indexOf(name), timesteps, eta: strength };
}

/** S of the timesteps T-1 .. 0, as `fastddpm.plans.spaced_timesteps` has them. */
export function spaced(about, method, steps) {
  const total = about.num_train_timesteps;
  if (!Number.isInteger(steps) || steps < 1 || steps > total) {
    throw new BadArgument("steps", steps, `an integer from 1 to ${total}`);
  }
  const own = about.defaults.timestep_spacing;
  const spacing = ["trailing", "linspace"].includes(own) ? own : "leading"; // in the place of a solver's as well
  const places = [...Array(steps).keys()];
  if (steps === total) return places.map((i) => total - 1 - i);
  if (spacing === "trailing") return places.map((i) => halfToEven((total * (steps - i)) / steps) - 1);
  const points = method === "dpmpp_2m" ? steps + 1 : steps; // whose last step ends at the clean image, not at 0
  const place = (i) => {
    if (spacing === "leading") return i * Math.floor(total / points);
    return points === 1 ? total - 1 : halfToEven(i * ((total - 1) / (points - 1)));
  };
  return places.map((i) => place(points - 1 - i));
}

function halfToEven(x) {
  const rounded = Math.round(x);
  return Math.abs(x % 1) === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}

/** A label for each seed: of those that are wanted, or of all classes, in turn by seed; undefined without classes. */
export function labelsInTurn(about, seeds, wanted) {
  if (about.num_classes === null) return wanted;
  const choices = wanted ?? [...Array(about.num_classes).keys()];
  return seeds.map((seed) => choices[Number(seed % BigInt(choices.length))]);
}

/** "0-3,20" -> integers of `number`, Number or BigInt; as the command line reads them. */
export function ranges(name, text, number) {
  const one = /^\s*(\d+)(?:\s*-\s*(\d+))?\s*$/;
  return text.split(",").flatMap((part) => {
    const [, first, last] = one.exec(part) ?? [];
    const [low, high] = [first, last ?? first].map((digits) => BigInt(digits ?? -1));
    if (low < 0n || high < low || high - low >= 65536n) {
      throw new BadArgument(name, `'${text}'`, "integers and rising ranges, as in 0-3,20,");
    }
    return Array.from({ length: Number(high - low) + 1 }, (_, i) => number(low + BigInt(i)));
  });
}

/** Images side by side, so many a row: {width, height, channels, pixels}, pixels uint8. */
export function grid({ count, height, width, channels, pixels }, columns) {
  const rows = Math.ceil(count / columns);
  const line = columns * width * channels;
  const out = new Uint8Array(rows * height * line);
  for (let i = 0; i < count; i++) {
    for (let y = 0; y < height; y++) {
      const from = (i * height + y) * width * channels;
      const to = (Math.floor(i / columns) * height + y) * line + (i % columns) * width * channels;
      out.set(pixels.subarray(from, from + width * channels), to);
    }
  }
  return { width: columns * width, height: rows * height, channels, pixels: out };
}
