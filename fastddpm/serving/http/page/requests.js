// What is asked of the service, and what it answers.

/** JSON of a request, whose seeds are bigints. */
export function jsonWithSeeds(fields, seeds) {
  return `${JSON.stringify(fields).slice(0, -1)},"seeds":[${seeds.join(",")}]}`;
}

/** What an answer that is no success says. */
export async function refusalOf(answer) {
  const said = await answer.json().catch(() => ({}));
  return said.error ?? `${answer.status} ${answer.statusText}`;
}

async function posted(address, body, accept, signal) {
  const headers = { "content-type": "application/json", accept };
  const answer = await fetch(address, { method: "POST", headers, body, signal });
  if (!answer.ok) throw new Error(await refusalOf(answer));
  return answer;
}

/** Server-sent events of a POST, each [name, data]; EventSource knows GET alone. */
export async function* eventsOf(address, body, signal) {
  const answer = await posted(address, body, "text/event-stream", signal);
  let waiting = "";
  for await (const piece of chunks(answer.body.pipeThrough(new TextDecoderStream()))) {
    const blocks = (waiting + piece).split("\n\n");
    waiting = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").filter((line) => line !== "" && !line.startsWith(":"));
      if (lines.length === 0) continue;
      const fields = Object.fromEntries(lines.map((line) => line.split(/: (.*)/s, 2)));
      yield [fields.event, JSON.parse(fields.data)];
    }
  }
}

async function* chunks(stream) {
  const reader = stream.getReader();
  for (let next = await reader.read(); !next.done; next = await reader.read()) yield next.value;
}

/** Images by the Open Inference Protocol, whose requests take a condition: addresses of pictures. */
export async function inferred(asked, seeds, condition, signal) {
  const count = seeds.length;
  const tensor = (name, datatype, data, shape = [count]) => ({ name, datatype, shape, data });
  const filled = (value) => Array(count).fill(value);
  const inputs = [
    tensor("condition", "FP32", Array.from(condition.data), condition.shape),
    tensor("method", "BYTES", filled(asked.method)),
    tensor("num_inference_steps", "INT64", filled(asked.num_inference_steps)),
  ];
  if (asked.class_labels !== null) inputs.push(tensor("class_labels", "INT64", asked.class_labels));
  if (asked.eta !== undefined) inputs.push(tensor("eta", "FP32", filled(asked.eta)));
  const listed = JSON.stringify(inputs).slice(1);
  const own = `{"name":"seeds","datatype":"INT64","shape":[${count}],"data":[${seeds.join(",")}]}`;
  const body = `{"inputs":[${own},${listed},"outputs":[{"name":"pixels"}]}`;
  const address = `/v2/models/${encodeURIComponent(asked.model)}/infer`;
  const answer = await posted(address, body, "application/json", signal);
  const [{ shape, data }] = (await answer.json()).outputs;
  return filled(0).map((_, i) => pictureOf(shape.slice(1), data.slice(i * (data.length / count))));
}

/** Pixels [height, width, channels] as the address of a picture. */
function pictureOf([height, width, channels], pixels) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[i * channels + (channels === 1 ? 0 : c)];
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas.toDataURL("image/png");
}
