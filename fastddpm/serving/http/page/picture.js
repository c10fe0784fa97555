// A picture as what a super-resolution model is given beside the noise: scaled to the model's size, in [-1, 1].

/** Float32Array [channels, height, width] of an image file. */
export async function conditionOf(file, [channels, height, width]) {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error(`picture: ${file.name} given, an image that this browser reads accepted`);
  });
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const out = new Float32Array(channels * height * width);
  for (let i = 0; i < height * width; i++) {
    const [r, g, b] = data.subarray(4 * i, 4 * i + 3);
    // As Pillow's "L" has it.
    const levels = channels === 1 ? [Math.round(0.299 * r + 0.587 * g + 0.114 * b)] : [r, g, b];
    for (let c = 0; c < channels; c++) out[c * height * width + i] = (levels[c] ?? 0) / 127.5 - 1;
  }
  return out;
}
