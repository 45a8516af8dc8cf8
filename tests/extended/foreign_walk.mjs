// What every WebSocket of JavaScript has to be good for: join, publish, replay, resume. A minimal codec of
// docs/protocol.md, written for this walk; it shares no code with the page.

import assert from "node:assert/strict";

// ---- What is written ----

function integer(value) {
  if (value < 251) return [value];
  const width = value < 2 ** 16 ? 2 : value < 2 ** 32 ? 4 : 8;
  const bytes = [{ 2: 0xfb, 4: 0xfc, 8: 0xfd }[width]];
  for (let at = 0, rest = value; at < width; at += 1, rest = Math.floor(rest / 256)) bytes.push(rest % 256);
  return bytes;
}
const concat = (...parts) => Uint8Array.from(parts.flatMap((part) => (typeof part === "number" ? [part] : Array.from(part))));
const data = (bytes) => concat(integer(bytes.length), bytes);
const text = (value) => data(new TextEncoder().encode(value));
const WANT = [1, 0, 0, 0];
const hello = (client, resume = []) => data(concat(1, new TextEncoder().encode("RLOG"), 1, 1, data(concat(0, text(client), integer(resume.length),
  ...resume.map(({ join, room, epoch, offset }) => concat(integer(join), text(room), integer(epoch), integer(offset), 0, WANT))))));
const joinEarliest = (request, join, room) => data(concat(2, integer(request), integer(join), text(room), 1, 0, WANT));
const publish = (request, room, publisher, seq, payload) => data(concat(5, integer(request), text(room), publisher, integer(seq), 0, 1,
  data(concat(0, 0, 0, data(payload), 0))));

// ---- What is read ----

class Reader {
  constructor(bytes) { this.bytes = bytes; this.at = 0; }
  left() { return this.bytes.length - this.at; }
  take(count) {
    assert.ok(count <= this.left(), "a value is cut");
    this.at += count;
    return this.bytes.subarray(this.at - count, this.at);
  }
  integer() {
    const [first] = this.take(1);
    if (first < 251) return first;
    assert.ok(first < 254);
    return this.take(2 ** (first - 250)).reduceRight((value, byte) => value * 256 + byte, 0);
  }
  data() { return this.take(this.integer()); }
}
function recordsOf(body) {
  const reader = new Reader(body);
  assert.equal(reader.integer(), 1, "the version of the body");
  const [count, first, span] = [reader.integer(), reader.integer(), reader.integer()];
  reader.integer();
  const found = [];
  while (reader.left()) {
    const [delta, step] = [reader.integer(), reader.integer()];
    reader.integer();
    reader.data();
    reader.take(16);
    const [seq, number] = [reader.integer(), reader.integer()];
    reader.integer();
    for (let index = 0; index < number; index += 1) {
      const inner = new Reader(reader.data());
      inner.data();
      inner.integer();
      for (let headers = inner.integer(); headers > 0; headers -= 1) { inner.data(); inner.data(); }
      found.push({ offset: first + delta + index * step, seq: seq + index, payload: inner.data() });
    }
  }
  assert.equal(found.length, count);
  assert.equal(found.at(-1).offset, first + span);
  return found;
}

// ---- A session ----

// Opens a socket of this class and greets; what comes is kept in `records`, `marks` and `answers`.
async function session(Socket, url, client, resume = []) {
  const socket = new Socket(url, ["roomlog.v1"]);
  socket.binaryType = "arraybuffer";
  const one = { socket, records: [], marks: [], answers: [], position: resume[0]?.offset ?? 0, failed: null, told: () => {} };
  const take = (number, reader) => {
    if (number === 128) {
      reader.integer();
      const [from, to, prev] = [reader.integer(), reader.integer(), reader.integer()];
      assert.ok(prev <= one.position && one.position < from, `${prev} <= ${one.position} < ${from}`);
      one.records.push(...recordsOf(reader.take(reader.left())).filter((record) => record.offset >= from && record.offset <= to));
      one.position = to;
    } else if (number >= 129 && number <= 132) {
      one.marks.push(number);
    } else {
      one.answers.push({ number, fields: reader });
    }
  };
  socket.onmessage = ({ data: message }) => {
    try {
      assert.ok(message instanceof ArrayBuffer, "a binary message");
      const reader = new Reader(new Uint8Array(message));
      while (reader.left()) {
        const frame = new Reader(reader.data());
        take(frame.integer(), frame);
      }
    } catch (error) {
      one.failed = error;
    }
    one.told();
  };
  socket.onclose = ({ code }) => { one.failed ??= new Error(`closed with ${code}`); one.told(); };
  socket.onerror = () => {};
  one.until = (what, condition) => new Promise((done, failed) => {
    const timer = setTimeout(() => failed(new Error(`${what} does not come`)), 20_000);
    one.told = () => {
      if (!one.failed && !condition()) return;
      clearTimeout(timer);
      if (one.failed) failed(one.failed); else done();
    };
    one.told();
  });
  one.close = () => new Promise((done) => { socket.onclose = ({ code }) => done(code); socket.close(1000); });
  await new Promise((done, failed) => { socket.onopen = done; socket.onclose = ({ code }) => failed(new Error(`closed with ${code}`)); });
  assert.equal(socket.protocol, "roomlog.v1");
  socket.onclose = ({ code }) => { one.failed ??= new Error(`closed with ${code}`); one.told(); };
  socket.send(hello(client, resume));
  await one.until("the welcome", () => one.answers[0]?.number === 64);
  return one;
}

// Walks with sockets of this class, in a room of its own. How many records it took.
export async function walk(Socket, url, name) {
  const room = `walk of ${name} ${Math.random()}`;
  const payloads = [0, 1, 125, 126, 65_535, 65_536, 200_000, ...Array(100).fill(40)].map((size, at) => Uint8Array.from({ length: size }, (_, byte) => (at * 31 + byte * 7) % 256));
  const publisher = Uint8Array.from({ length: 16 }, () => Math.floor(Math.random() * 256));
  const same = (records, expected) => {
    assert.deepEqual(records.map(({ payload }) => Buffer.from(payload).toString("hex")), expected.map((payload) => Buffer.from(payload).toString("hex")));
  };

  const one = await session(Socket, url, name);
  one.socket.send(joinEarliest(1, 1, room));
  await one.until("the join", () => one.answers[1]?.number === 65);
  const joined = one.answers[1].fields;
  assert.deepEqual([joined.integer(), joined.integer()], [1, 1]);
  const epoch = joined.integer();
  await one.until("live", () => one.marks.includes(129));
  payloads.forEach((payload, at) => one.socket.send(publish(at + 2, room, publisher, at + 1, payload)));
  await one.until("all answers", () => one.answers.length === payloads.length + 2);
  assert.ok(one.answers.slice(2).every(({ number }) => number === 68), "published");
  await one.until("all records", () => one.records.length === payloads.length);
  same(one.records, payloads);
  assert.equal(await one.close(), 1000);

  const two = await session(Socket, url, name);
  two.socket.send(joinEarliest(1, 9, room));
  await two.until("the replay", () => two.marks.includes(129));
  same(two.records, payloads);
  assert.equal(await two.close(), 1000);

  const middle = one.records[50].offset;
  const three = await session(Socket, url, name, [{ join: 3, room, epoch, offset: middle }]);
  await three.until("the rest", () => three.marks.includes(129));
  same(three.records, payloads.slice(51));
  three.socket.send(publish(1, room, publisher, 1, payloads[0]));
  await three.until("the answer to a repeat", () => three.answers.length === 2);
  const repeat = three.answers[1].fields;
  assert.deepEqual([repeat.integer(), repeat.integer(), repeat.integer()], [1, one.records[0].offset, one.records[0].offset]);
  repeat.integer();
  assert.equal(repeat.integer(), 1, "a repeat is not a second message");
  assert.equal(await three.close(), 1000);
  return payloads.length;
}
