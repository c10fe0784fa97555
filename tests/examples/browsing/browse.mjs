// Drives a page in a headless Chromium: node browse.mjs CHROMIUM URL, with a JSON list of acts on standard input, each
// [verb, ...arguments]. Prints JSON: what each act gave, what the console said, what was asked of which place.

import { text } from "node:stream/consumers";

import { chromium } from "playwright-core";

/** Waits for an expression; from outside, since a page whose policy forbids eval cannot. */
async function until(page, expression) {
  for (const end = Date.now() + PATIENCE; !(await page.evaluate(expression)); ) {
    if (Date.now() > end) throw new Error(`waited in vain for ${expression}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

const [executablePath, url] = process.argv.slice(2);
const acts = JSON.parse(await text(process.stdin));
// The superuser, whom tests may run as, has no sandbox there.
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
const PATIENCE = 60_000;
const said = [];
const asked = [];
try {
  const page = await browser.newPage({ viewport: { width: 960, height: 900 } });
  page.setDefaultTimeout(PATIENCE);
  page.on("console", (message) => said.push(`${message.type()}: ${message.text()}`));
  page.on("pageerror", (error) => said.push(`pageerror: ${error.message}`));
  page.on("requestfailed", (request) => {
    const reason = request.failure()?.errorText;
    // The page's own end of a request, as which Chromium also counts some streams that were read to their last event.
    if (reason !== "net::ERR_ABORTED") said.push(`failed: ${request.url()} ${reason}`);
  });
  page.context().on("request", (request) => asked.push(request.url()));
  const verbs = {
    fill: (selector, value) => page.fill(selector, value),
    select: (selector, value) => page.selectOption(selector, value),
    click: (selector) => page.click(selector),
    press: (selector, key) => page.press(selector, key),
    wait: (expression) => until(page, expression),
    evaluate: (expression) => page.evaluate(expression),
    media: (options) => page.emulateMedia(options),
    screenshot: (path) => page.screenshot({ path }).then(() => null),
  };
  await page.goto(url);
  const results = [];
  for (const [verb, ...given] of acts) results.push((await verbs[verb](...given)) ?? null);
  console.log(JSON.stringify({ results, said, asked }));
} catch (error) {
  console.error(`${error.message}\n${said.join("\n")}`);
  process.exitCode = 1;
} finally {
  await browser.close();
}
