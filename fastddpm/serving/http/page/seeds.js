// Seeds as people write them. They are integers below 2^63, which numbers of JavaScript do not hold.

const MAX_SEED = 2n ** 63n - 1n;
const PART = /^\s*(\d{1,19})(?:\s*-\s*(\d{1,19}))?\s*$/;

/** "0-9,20" as bigints, so many at most; an Error says what is accepted. */
export function seedsOf(text, most) {
  const seeds = [];
  for (const part of text.split(",")) {
    const [, first, last = first] = PART.exec(part) ?? [];
    const [low, high] = first === undefined ? [1n, 0n] : [BigInt(first), BigInt(last)];
    if (high < low || high > MAX_SEED) {
      throw new Error(`seeds: '${text}' given, integers and rising ranges as in 0-9,20, below 2^63, accepted`);
    }
    if (BigInt(seeds.length) + high - low >= BigInt(most)) {
      throw new Error(`seeds: more than ${most} given, at most ${most} accepted`);
    }
    for (let seed = low; seed <= high; seed++) seeds.push(seed);
  }
  return seeds;
}
