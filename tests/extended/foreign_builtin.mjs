// The WebSocket that is built into node: foreign_builtin.mjs WS_PORT.

import assert from "node:assert/strict";
import { walk } from "./foreign_walk.mjs";

const url = `ws://127.0.0.1:${process.argv[2]}/v1/ws`;
const records = await walk(WebSocket, url, "node");
async function closes(code, protocols, send) {
  const socket = new WebSocket(url, protocols);
  const ended = new Promise((done) => { socket.onclose = (event) => done(event.code); });
  socket.onopen = () => send?.(socket);
  assert.equal(await ended, code);
}
await closes(1003, ["roomlog.v1"], (socket) => socket.send("text"));
await closes(4600, ["roomlog.v1"], (socket) => socket.send(Uint8Array.of(255, 255, 255)));
// Some versions tell of a refusal by an error alone.
for (const protocols of [["roomlog.v2"], []]) {
  const socket = new WebSocket(url, protocols);
  const told = await new Promise((done) => { socket.onopen = socket.onerror = socket.onclose = (event) => done(event.type); });
  assert.notEqual(told, "open");
}
console.log(`WebSocket of node ${process.version}: ${records} records joined, published, replayed, resumed; closes 1003, 4600, refusals`);
