// Chromium and the page, as a person would use it. Started by browser.sh, which sets the environment.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import http from "node:http";
import { chromium } from "playwright-core";

const { ROOMLOG_BIN, CHROMIUM, SCREENSHOTS, DATA, WS, ADMIN } = process.env;
const url = `http://127.0.0.1:${WS}`;
const room = "tea time ü";
const address = `${url}/#${encodeURIComponent(room)}`;
let server = null;
process.on("exit", () => server?.kill("SIGKILL"));

async function serve() {
  server = spawn(ROOMLOG_BIN, ["serve", "--data", DATA, "--listen", `127.0.0.1:${WS}`, "--admin", `127.0.0.1:${ADMIN}`,
    "--quic", "off"], { stdio: ["ignore", "pipe", "ignore"] });
  await once(server.stdout, "data");
}
async function kill() {
  const ended = once(server, "exit");
  server.kill("SIGKILL");
  await ended;
}
// Publishes lines through the program; resolves when all are acknowledged.
function publish(lines, to = room) {
  const child = spawn(ROOMLOG_BIN, ["pub", to, "--url", `ws://127.0.0.1:${WS}`], { stdio: ["pipe", "ignore", "inherit"] });
  child.stdin.end(lines.map((line) => `${line}\n`).join(""));
  return once(child, "exit").then(([code]) => assert.equal(code, 0, "pub"));
}
const numbers = (from, to) => Array.from({ length: to - from }, (_, at) => `${from + at}`);
const step = (text) => console.log(text);

const browser = await chromium.launch({
  executablePath: CHROMIUM,
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP rebound.example 127.0.0.1"],
});

const complaints = [];
async function open(where, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1000, height: 760 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(30_000);
  page.on("pageerror", (error) => complaints.push(`${error}`));
  page.on("dialog", (dialog) => { complaints.push(`dialog ${dialog.message()}`); dialog.dismiss(); });
  page.on("console", (line) => {
    // A server that was killed is a failed connection, and Chromium says so.
    if (line.type() === "error" && !/ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET/.test(line.text())) complaints.push(line.text());
  });
  await page.goto(where);
  return page;
}
const state = (page, name) => page.waitForSelector(`#state[data-state=${name}]`, { state: "attached" });
const rows = (page) => page.$$eval("#log li.record .content", (found) => found.map((one) => one.textContent));
const count = (page, wanted) => page.waitForFunction(
  (expected) => document.querySelectorAll("#log li.record").length >= expected, wanted);
// That no row is lost, doubled or out of order: what is shown, now and after everything has settled.
async function shows(page, expected, what) {
  await count(page, expected.length);
  assert.deepEqual(await rows(page), expected, what);
}
async function type(page, text) {
  await page.fill("#message", text);
  await page.press("#message", "Enter");
}

await serve();
const all = numbers(1, 501);
await publish(all);

// Joins by the address, replays, goes live.
const light = await open(address, { colorScheme: "light" });
await state(light, "connected");
await light.waitForSelector("#log li.live");
await shows(light, all, "the replay");
assert.equal(await light.inputValue("#room"), room);
assert.equal(await light.title(), `${room} · Roomlog`);
assert.equal(await light.$$eval("#log li.replayed", (found) => found.length), 500);
assert.ok(await light.evaluate(() => {
  const log = document.getElementById("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < 5;
}), "the newest is in view");
step("joined by the address; 500 records replayed, in order, then live");

// Publishes; another page sees it, and the other way round. Nothing that is sent becomes part of the page.
const dark = await open(address, { colorScheme: "dark" });
await shows(dark, all, "the replay in a second page");
const evil = `<img src=x onerror="alert(1)"><b>bold</b> & "quotes"`;
await type(light, evil);
all.push(evil);
await shows(light, all, "its own");
await shows(dark, all, "the other's");
await type(dark, "two\nlines and ünïcödé 🫖");
all.push("two\nlines and ünïcödé 🫖");
await shows(light, all, "the other's");
await shows(dark, all, "its own");
assert.equal(await light.$$eval("#log li.mine", (found) => found.length), 1, "its own records are marked");
assert.equal(await light.$$eval("#log img, #log b", (found) => found.length), 0, "text is text");
await publish(["from a program"]);
all.push("from a program");
await shows(light, all, "a program's");
assert.equal(await light.$$eval("#log li.record:not(.replayed)", (found) => found.length), 3, "what came live is not replayed");
step("published from two pages and a program; all see all");
await light.screenshot({ path: `${SCREENSHOTS}/light.png` });
await dark.screenshot({ path: `${SCREENSHOTS}/dark.png` });

// kill -9: the page says so, keeps what is published, comes back by itself, resumes.
for (const round of [1, 2, 3]) {
  await kill();
  await Promise.all([state(light, "waiting"), state(dark, "waiting")]);
  await light.waitForFunction(() => /retry in \d+ s/.test(document.getElementById("state-text").textContent));
  await type(light, `while it was away ${round}`);
  await light.waitForFunction(() => document.querySelector("#pending li")?.textContent.startsWith("waiting"));
  if (round === 1) {
    await light.screenshot({ path: `${SCREENSHOTS}/away-light.png` });
    await dark.screenshot({ path: `${SCREENSHOTS}/away-dark.png` });
  }
  await serve();
  all.push(`while it was away ${round}`);
  await Promise.all([state(light, "connected"), state(dark, "connected")]);
  await Promise.all([shows(light, all, `after kill ${round}`), shows(dark, all, `after kill ${round}`)]);
  await light.waitForFunction(() => !document.querySelector("#pending li"));
}
// The button need not wait for the clock.
await kill();
await state(light, "waiting");
await serve();
// In one step: the page may come back by itself at any moment, and then the button is hidden.
await light.$eval("#again", (button) => button.hidden || button.click());
await state(light, "connected");
assert.equal(await light.$$eval("#log li.live", (found) => found.length) >= 1, true);
step("four kills: both pages came back, nothing lost, nothing doubled, what was written meanwhile was published once");

// Killed in the middle of a stream: the pages show the newest thousand, each once, in order.
const stream = publish(numbers(100_000, 120_000));
await light.waitForFunction(() => [...document.querySelectorAll("#log li.record .content")].at(-1)?.textContent > "100500");
await kill();
await serve();
await stream;
for (const page of [light, dark]) {
  await page.waitForFunction(() => [...document.querySelectorAll("#log li.record .content")].at(-1)?.textContent === "119999");
  const shown = await rows(page);
  assert.deepEqual(shown, numbers(120_000 - shown.length, 120_000), "the newest, each once, in order");
  assert.ok(shown.length > 900 && shown.length <= 1000, "the page does not grow without bound");
  const read = await page.textContent("#facts");
  assert.match(read.replaceAll(/[.,\s]/g, ""), new RegExp(`^${all.length + 20_000}recordsread`), read);
}
step("killed in the middle of 20,000 records: each was read once");

// Another room, through the form; an empty one; what the address says is what is joined.
await light.fill("#room", "elsewhere");
await light.click("#enter button");
await light.waitForSelector("#log li.live");
assert.equal(await light.$$eval("#log li.empty", (found) => found.length), 1, "an empty room says so");
assert.equal(await light.evaluate(() => location.hash), "#elsewhere");
await light.screenshot({ path: `${SCREENSHOTS}/empty-light.png` });
await type(light, "the first");
await shows(light, ["the first"], "a new room");
await light.goBack();
await light.waitForFunction((name) => document.getElementById("room").value === name, room);
await light.selectOption("#from", "last");
await light.click("#enter button");
await light.waitForFunction(() => document.querySelectorAll("#log li.record").length === 100);
await light.waitForSelector("#log li.live");
assert.deepEqual(await rows(light), numbers(119_900, 120_000), "the last 100");
const narrow = await open(address, { viewport: { width: 360, height: 640 }, colorScheme: "dark" });
await narrow.waitForSelector("#log li.live");
assert.ok(await narrow.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "nothing is wider than a telephone");
await narrow.screenshot({ path: `${SCREENSHOTS}/narrow-dark.png` });
step("rooms through the form and the address, an empty room, the last 100, a narrow screen");

assert.deepEqual(complaints, [], "the page's own errors, and what its policy forbade");

// Pages from elsewhere cannot connect, not even through a name that leads here.
const foreign = http.createServer((_, answer) => answer.setHeader("content-type", "text/html").end("<p>elsewhere"));
foreign.listen(0, "127.0.0.1");
await once(foreign, "listening");
const connect = (page, target) => page.evaluate((where) => new Promise((done) => {
  const socket = new WebSocket(where, "roomlog.v1");
  socket.onopen = () => done("open");
  socket.onclose = () => done("closed");
}), target);
const guest = await (await browser.newContext()).newPage();
await guest.goto(`http://127.0.0.1:${foreign.address().port}/`);
assert.equal(await connect(guest, `ws://127.0.0.1:${WS}/v1/ws`), "closed", "another origin");
await guest.goto("data:text/html,<p>nowhere");
assert.equal(await connect(guest, `ws://127.0.0.1:${WS}/v1/ws`), "closed", "an opaque origin");
const rebound = await guest.goto(`http://rebound.example:${WS}/`);
assert.equal(rebound.status(), 403, "a foreign name for this server");
await guest.goto(`${url}/`);
assert.equal(await connect(guest, `ws://127.0.0.1:${WS}/v1/ws`), "open", "its own page");
step("a foreign origin, an opaque one and a foreign name are refused");

foreign.close();
await browser.close();
const ended = once(server, "exit");
server.kill("SIGTERM");
assert.equal((await ended)[0], 0, "the server closes");
server = null;
