// node's ws against the server: foreign_ws.mjs WS_PORT, with PAGE = docs/protocol.md, whose examples it sends.

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import WebSocket from "ws";
import { walk } from "./foreign_walk.mjs";

const url = `ws://127.0.0.1:${process.argv[2]}/v1/ws`;
const examples = new Map();
for (const [, name, body] of readFileSync(process.env.PAGE, "utf8").matchAll(/```hex (\w+)\n([\s\S]*?)```/g)) {
  examples.set(name, Buffer.from(body.split("\n").map((line) => line.split("#")[0].trim()).join(""), "hex"));
}
const numbers = { 64: "welcome", 65: "joined", 68: "published", 71: "pong", 72: "error", 128: "delivery", 129: "live" };

function dial(protocols = ["roomlog.v1"], options = {}) {
  const socket = new WebSocket(url, protocols, { perMessageDeflate: true, ...options });
  socket.names = [];
  socket.waiting = () => {};
  socket.on("message", (data, binary) => {
    assert.ok(binary);
    // Lengths of one byte, or fb and two: the frames here are no longer.
    for (let at = 0; at < data.length;) {
      const [length, head] = data[at] < 251 ? [data[at], 1] : [data.readUInt16LE(at + 1), 3];
      assert.ok(data[at] <= 251);
      socket.names.push(numbers[data[at + head]] ?? data[at + head]);
      at += head + length;
    }
    socket.waiting();
  });
  socket.until = (name) => new Promise((done, failed) => {
    const timer = setTimeout(() => failed(new Error(`no ${name} in ${socket.names}`)), 20_000);
    socket.waiting = () => { if (socket.names.includes(name)) { clearTimeout(timer); done(); } };
    socket.waiting();
  });
  return socket;
}
async function closes(code, send) {
  const socket = dial();
  await once(socket, "open");
  send(socket);
  const [got] = await once(socket, "close");
  assert.equal(got, code);
}
async function refused(protocols, options) {
  const socket = dial(protocols, options);
  socket.on("error", () => {});
  const [, response] = await once(socket, "unexpected-response");
  response.destroy();
  assert.ok(response.statusCode >= 400 && response.statusCode < 500, `${response.statusCode}`);
  return response.statusCode;
}

const one = dial(["other", "roomlog.v1"]);
await once(one, "open");
assert.equal(one.protocol, "roomlog.v1");
assert.equal(one.extensions, "", "no compression");
one.send(examples.get("hello"));
await one.until("welcome");
one.send(Buffer.concat([examples.get("publish"), examples.get("join_earliest"), examples.get("ping")]));
for (const name of ["published", "joined", "pong", "delivery", "live"]) await one.until(name);
// In three fragments.
one.names.length = 0;
const ping = examples.get("ping");
one.send(ping.subarray(0, 1), { fin: false });
one.send(ping.subarray(1, 2), { fin: false });
one.send(ping.subarray(2), { fin: true });
await one.until("pong");
one.ping("are you there?");
assert.equal(String((await once(one, "pong"))[0]), "are you there?");
one.close(1000);
assert.equal((await once(one, "close"))[0], 1000);

await closes(1003, (socket) => socket.send("text"));
await closes(1009, (socket) => { socket.send(examples.get("hello")); socket.send(Buffer.alloc(2_000_000)); });
await closes(4605, (socket) => socket.send(examples.get("hello_token")));
await closes(4600, (socket) => { socket.send(examples.get("hello")); socket.send(examples.get("ok")); });
const codes = [await refused([]), await refused(["roomlog.v2"]), await refused(["roomlog.v1"], { origin: "https://elsewhere.example" })];
assert.equal(codes[2], 403);
const records = await walk(WebSocket, url, "ws");
console.log(`ws of node ${process.version}: ${records} records joined, published, replayed, resumed; negotiation, fragments, ping, closes 1003, 1009, 4605, 4600, refusals ${codes}`);
