// The browser page's script, run in node: its codec against the hex examples of docs/protocol.md, and its client
// against a scripted server. Run: node tests/extended/page_codec.mjs

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import vm from "node:vm";

const root = new URL("../../", import.meta.url);
const html = readFileSync(new URL("src/server/page.html", root), "utf8");
const page = readFileSync(new URL("docs/protocol.md", root), "utf8");

const scripts = [...html.matchAll(/<script([^>]*)>([\s\S]*?)<\/script>/g)];
const { Protocol, makeClient } = vm.runInThisContext(`(() => {${scripts[0][2]}
return { Protocol, makeClient };
})()`);

const unhex = (text) => Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16));
const examples = new Map();
for (const [, name, body] of page.matchAll(/```hex (\w+)\n([\s\S]*?)```/g)) {
  examples.set(name, unhex(body.split("\n").map((line) => line.split("#")[0].trim()).join("")));
}
const one = (name) => {
  const frames = Protocol.decode(examples.get(name));
  assert.equal(frames.length, 1, name);
  return frames[0];
};
// Values with their bytes as hex, so that they can be compared.
const plain = (value) => JSON.parse(JSON.stringify(value, (key, inner) =>
  typeof inner === "bigint" ? `${inner}n`
    : inner instanceof Uint8Array ? Protocol.hex(inner) : inner));

const EPOCH = 6000000000000, TIME = 1760000000000000;
const PUBLISHER = "00112233445566778899aabbccddeeff";
const utf8 = (text) => new TextEncoder().encode(text);
const at7 = { epoch: EPOCH, offset: 7 };

test("the page is one file that asks for nothing else", () => {
  assert.equal(scripts.length, 1);
  assert.equal(scripts[0][1], "", "the script has no attributes: a policy names it by its hash");
  assert.equal([...html.matchAll(/<style>/g)].length, 1);
  assert.doesNotMatch(html, /https?:\/\/|\ssrc=|@import|url\(|\son\w+=|\sstyle=|innerHTML|eval\(/);
});

test("requests are the bytes of the page's examples", () => {
  const join = (request, fields) => ["join", { request, join: 3, room: "tea", ...fields }];
  const cases = {
    hello: ["hello", { client: "demo 1.0", resume: [] }],
    hello_resume: ["hello", { client: "demo 1.0", resume: [
      { join: 3, room: "tea", position: at7, credit: 65536 },
      { join: 4, room: "Küche", position: { epoch: EPOCH, offset: 0 } },
    ] }],
    join_new: join(1, { from: "new" }),
    join_earliest: join(2, { from: "earliest", credit: 262144 }),
    join_last: join(3, { from: "last", count: 50 }),
    join_after: join(4, { from: "after", position: at7 }),
    join_since: join(5, { from: "since", time: TIME }),
    credit: ["credit", { request: 6, join: 3, bytes: 131072 }],
    leave: ["leave", { request: 7, join: 3 }],
    publish: ["publish", { request: 8, room: "tea", publisher: unhex(PUBLISHER), seq: 1, records: [
      { payload: utf8("hi") },
    ] }],
    publish_many: ["publish", { request: 9, room: "tea", publisher: unhex(PUBLISHER), seq: 2, expect: 7, records: [
      { kind: "edit", reference: 7, headers: [{ name: "lang", value: utf8("en") }], payload: utf8("hi!") },
      { payload: unhex("00ff80") },
    ] }],
    rooms: ["rooms", { request: 13, prefix: "te", after: "tea", limit: 100 }],
    ping: ["ping", { request: 15 }],
  };
  for (const [name, [request, fields]] of Object.entries(cases)) {
    assert.equal(Protocol.hex(Protocol.encode(request, fields)), Protocol.hex(examples.get(name)), name);
  }
});

test("answers and pushes are read as the page says", () => {
  const fields = (name) => {
    const { name: _, ...rest } = plain(one(name));
    return rest;
  };
  assert.deepEqual(fields("joined"), { request: 1, join: 3, epoch: EPOCH, first: 2, head: 9, start: 9 });
  assert.deepEqual(fields("void"), { request: 4, join: 3, code: 109, epoch: EPOCH, first: 2, head: 9 });
  assert.deepEqual(fields("ok"), { request: 7 });
  assert.deepEqual(fields("published_duplicate"), { request: 8, first: 7, last: 7, time: 0, duplicate: true });
  assert.deepEqual(fields("pong"), { request: 15, time: TIME });
  assert.deepEqual(fields("live"), { join: 3, offset: 7 });
  assert.deepEqual(fields("gap"), { join: 3, from: 7, to: 300, reason: "retention" });
  assert.deepEqual(fields("left"), { join: 3, code: 303, message: "the room could not be read" });
  assert.deepEqual(fields("goodbye"), { code: 302, reason: "restarting", reconnect: true, afterMs: 1500 });
  const welcome = fields("welcome_resumed");
  assert.equal(welcome.limits.payloadBytes, 262144);
  assert.equal(welcome.limits.stallTimeoutMs, 600000);
  assert.equal(welcome.pingIntervalMs, 25000);
  assert.deepEqual(welcome.resumed.map(({ result, join, code }) => [result, join, code]),
    [["joined", 3, undefined], ["void", 4, 108], ["refused", undefined, 103]]);
  assert.deepEqual(fields("room_list").rooms.map(({ room, cursor, unread, members }) => [room, cursor, unread, members]),
    [["tea", null, null, null], ["tee", 5, 4, 2]]);
  const errors = [...examples.keys()].filter((name) => name.startsWith("error_"));
  assert.ok(errors.length > 20);
  for (const name of errors) assert.equal(one(name).retry, one(name).code >= 200, name);
});

test("records of a batch body are read as the page says", () => {
  const short = (name) => plain(Protocol.records(examples.get(name)))
    .map(({ offset, time, user, publisher, seq, kind, reference, headers, payload, extension }) =>
      [offset, time - TIME, user, publisher.slice(0, 4), seq, kind, reference, headers.length, payload, extension]);
  assert.deepEqual(short("batch_one"), [[7, 0, "", "0011", 1, "", 0, 0, "6869", ""]]);
  assert.deepEqual(short("batch_runs"), [
    [300, 0, "ann", "0011", 41, "", 0, 0, "6f6e65", ""],
    [301, 0, "ann", "0011", 42, "", 0, 0, "74776f", ""],
    [305, 1500, "ann", "0011", 43, "edit", 300, 2, "756e6f", ""],
    [307, 1500, "ann", "0011", 44, "react", 301, 0, "f09f9982", ""],
    [309, 1500, "ann", "0011", 45, "", 0, 0, "", ""],
    [376, 70000, "bob", "f0f1", 1, "", 0, 0, "00ff80", "cafe"],
  ]);
  const greatest = readFileSync(new URL("tests/golden/v1/batch_greatest.hex", root), "utf8");
  const [record] = Protocol.records(unhex(greatest.split("\n").map((line) => line.split("#")[0].trim()).join("")));
  assert.equal(record.seq, 18446744073709551615n);
  assert.equal(record.offset, Number.MAX_SAFE_INTEGER);
});

test("every server frame of the page is read or may be skipped", () => {
  const unread = new Set(["page", "cursors", "members", "refresh_required"]); // Answers to what the page never asks.
  const rows = [...page.matchAll(/^\| (\d+) \| (\w+) \| server /gm)];
  assert.ok(rows.length > 20);
  for (const [, number, name] of rows) {
    const read = () => Protocol.decode(examples.get(name === "error" ? "error_busy" : name));
    if (unread.has(name)) assert.throws(read, Protocol.Bad, name);
    else assert.equal(read().length, Number(number) >= 192 ? 0 : 1, name);
  }
});

test("what is cut, too long or not canonical is refused", () => {
  for (const name of ["welcome_resumed", "joined", "void", "published", "room_list", "error_busy", "gap", "goodbye"]) {
    const bytes = examples.get(name);
    for (let end = 1; end < bytes.length; end++) {
      assert.throws(() => Protocol.decode(bytes.subarray(0, end)), Protocol.Bad, `${name} cut at ${end}`);
    }
    // The same with the length mended: the value itself is cut, or followed by a byte.
    if (bytes[0] > 249) continue;
    for (let end = 2; end < bytes.length; end++) {
      const cut = bytes.slice(0, end);
      cut[0] = end - 1;
      assert.throws(() => Protocol.decode(cut), Protocol.Bad, `${name} cut at ${end}`);
    }
    const longer = Uint8Array.of(...bytes, 0);
    longer[0]++;
    assert.throws(() => Protocol.decode(longer), Protocol.Bad, `${name} with a byte behind it`);
  }
  for (const hex of ["03 43 fb0700", "04 43 fb0700", "06 43 fc07000000", "0a 43 fd0700000000000000", "fb0200 43 07"]) {
    assert.throws(() => Protocol.decode(unhex(hex.replaceAll(" ", ""))), Protocol.Bad, hex);
  }
  assert.throws(() => Protocol.decode(unhex("0243ff")), Protocol.Bad);
  assert.throws(() => Protocol.decode(unhex("027fff")), Protocol.Bad, "an unknown frame below 192");
  assert.equal(Protocol.decode(unhex("02f0ff")).length, 0, "an unknown frame from 192 up");
  for (const name of ["batch_one", "batch_runs"]) {
    const bytes = examples.get(name);
    for (let end = 0; end < bytes.length; end++) {
      assert.throws(() => Protocol.records(bytes.subarray(0, end)), Protocol.Bad, `${name} cut at ${end}`);
    }
  }
});

// ---- The client against a scripted server ----

class Bytes {
  constructor() { this.out = []; }
  int(value) {
    if (value < 251) this.out.push(value);
    else {
      const [first, width] = value < 65536 ? [251, 2] : value < 2 ** 32 ? [252, 4] : [253, 8];
      this.out.push(first);
      for (let at = 0; at < width; at++) this.out.push(Number(BigInt(value) >> BigInt(8 * at) & 255n));
    }
    return this;
  }
  raw(bytes) { this.out.push(...bytes); return this; }
  data(bytes) { return this.int(bytes.length).raw(bytes); }
  string(text) { return this.data(utf8(text)); }
}
const frame = (number, fill) => {
  const inner = fill(new Bytes().raw([number])).out;
  return Uint8Array.from(new Bytes().data(inner).out);
};
const welcome = (...results) => frame(64, (to) => {
  to.raw([1]).int(9).string("").int(TIME);
  [1114112, 262144, 32, 16, 64, 1024, 8192, 1024, 1024, 1048576, 1048576, 1000, 1024, 1048576, 60000, 600000]
    .forEach((limit) => to.int(limit));
  to.int(0).int(25000).int(results.length);
  results.forEach((result) => result(to));
  return to;
});
const joinedBody = (to, join, start, epoch = EPOCH) => to.int(0).int(join).int(epoch).int(1).int(9).int(start);
const joined = (request, join, start, epoch = EPOCH) =>
  frame(65, (to) => to.int(request).int(join).int(epoch).int(1).int(9).int(start));
const published = (request, offset) => frame(68, (to) => to.int(request).int(offset).int(offset).int(TIME).raw([0]));
const error = (request, code, retry, after) =>
  frame(72, (to) => to.int(request).int(code).string("no").raw([retry ? 1 : 0]).int(after));
const live = (join, offset) => frame(129, (to) => to.int(join).int(offset));
const delivery = (join, prev, offsets, payload = "x") => frame(128, (to) => {
  to.int(join).int(offsets[0]).int(offsets.at(-1)).int(prev);
  to.raw([1]).int(offsets.length).int(offsets[0]).int(offsets.at(-1) - offsets[0]).int(TIME);
  for (const offset of offsets) {
    const record = new Bytes().string("").int(0).int(0).string(payload).int(0).out;
    const area = new Bytes().data(record).out;
    to.int(offset - offsets[0]).int(1).int(0).string("").raw(unhex(PUBLISHER)).int(offset).int(1).data(area);
  }
  return to;
});

// Reads what the page sends; enough of each request for these tests.
function request(bytes) {
  let at = 0;
  const int = () => {
    const first = bytes[at++];
    if (first < 251) return first;
    const width = { 251: 2, 252: 4, 253: 8 }[first];
    let value = 0n;
    for (let index = 0; index < width; index++) value |= BigInt(bytes[at++]) << BigInt(8 * index);
    return Number(value);
  };
  const take = (length) => bytes.subarray(at, at += length);
  const string = () => new TextDecoder().decode(take(int()));
  const position = () => ({ epoch: int(), offset: int() });
  assert.equal(int(), bytes.length - at, "a message of the page is one frame");
  const number = int();
  switch (number) {
    case 1: {
      take(6), int(), int();
      const found = { name: "hello", client: string(), resume: [] };
      for (let count = int(); count > 0; count--) {
        found.resume.push({ join: int(), room: string(), position: position(), credit: int() && int() });
        take(4);
      }
      return found;
    }
    case 2: {
      const found = { name: "join", request: int(), join: int(), room: string(), start: int() };
      if (found.start === 2) found.count = int();
      if (found.start === 3) found.position = position();
      return { ...found, credit: int() && int() };
    }
    case 3: return { name: "credit", request: int(), join: int(), bytes: int() };
    case 4: return { name: "leave", request: int(), join: int() };
    case 5: return { name: "publish", request: int(), room: string(), publisher: Protocol.hex(take(16)), seq: int() };
    case 7: return { name: "rooms", request: int() };
    case 9: return { name: "ping", request: int() };
    default: throw new Error(`the page sent frame ${number}`);
  }
}

function world() {
  const here = { sockets: [], timers: [], states: [], outbox: [], failed: [], now: 0, ids: 1 };
  const env = {
    open() {
      const socket = {
        sent: [], closed: false,
        send(bytes) { this.sent.push(request(bytes)); },
        close() { this.closed = true; },
        say(...frames) {
          for (const bytes of frames) this.onmessage({ data: bytes.buffer.slice(0) });
        },
        // Takes the oldest request of a name off what was sent.
        expect(name) {
          const index = this.sent.findIndex((one) => one.name === name);
          assert.notEqual(index, -1, `no ${name} among ${this.sent.map((one) => one.name)}`);
          return this.sent.splice(index, 1)[0];
        },
      };
      here.sockets.push(socket);
      return socket;
    },
    now: () => here.now, random: () => 0.5, randomBytes: (count) => new Uint8Array(count).fill(here.ids++),
    setTimeout(action, ms) { here.timers.push({ action, at: here.now + ms }); return here.timers.at(-1); },
    clearTimeout(timer) { here.timers = here.timers.filter((one) => one !== timer); },
    mine: new Set(),
  };
  here.client = makeClient(env, {
    state: (state) => here.states.push(state), wake() {}, joined() {}, rooms() {},
    outbox: (room) => { here.outbox = room.outbox.map((one) => one.text); },
    failed: (text, why) => here.failed.push([text, why]),
  });
  here.pass = (ms) => {
    const until = here.now + ms;
    for (;;) {
      const next = here.timers.filter((one) => one.at <= until).sort((a, b) => a.at - b.at)[0];
      if (!next) break;
      here.now = next.at;
      env.clearTimeout(next);
      next.action();
    }
    here.now = until;
  };
  here.state = () => here.states.at(-1).name;
  here.socket = () => here.sockets.at(-1);
  here.open = (from = "earliest") => {
    here.client.enter("tea", from);
    here.client.connect();
    here.socket().onopen();
    here.socket().say(welcome());
    const join = here.socket().expect("join");
    here.socket().say(joined(join.request, join.join, 0));
    return join;
  };
  here.take = () => here.client.take(1000).map(({ type, record, live }) =>
    type === "record" ? `${live ? "live" : "replayed"} ${record.offset}` : type);
  return here;
}

test("replayed records are told apart from live ones, in order", () => {
  const here = world();
  const { join, start, credit } = here.open();
  assert.deepEqual([start, credit], [1, 262144]);
  here.socket().say(delivery(join, 0, [1, 2]), live(join, 2), delivery(join, 2, [5]));
  assert.deepEqual(here.take(), ["replayed 1", "replayed 2", "live", "live 5"]);
  assert.equal(here.state(), "connected");
});

test("after a loss the room goes on where it was, and the message goes out with its seq once more", () => {
  const here = world();
  const { join } = here.open();
  here.socket().say(delivery(join, 0, [1, 2]), live(join, 2));
  assert.equal(here.client.publish("one"), null);
  assert.equal(here.client.publish("two"), null);
  const first = here.socket().expect("publish");
  assert.ok(!here.socket().sent.some(({ name }) => name === "publish"), "one at a time");
  here.socket().onclose({ code: 1006 });
  assert.equal(here.state(), "waiting");
  assert.equal(here.states.at(-1).until - here.now, 500);
  here.pass(500);
  assert.equal(here.sockets.length, 2);
  here.socket().onopen();
  const { resume } = here.socket().expect("hello");
  assert.deepEqual(resume.map(({ room, position }) => [room, position.epoch, position.offset]), [["tea", EPOCH, 2]]);
  assert.notEqual(resume[0].join, join);
  here.socket().say(welcome((to) => joinedBody(to.int(0), resume[0].join, 2)));
  const again = here.socket().expect("publish");
  assert.deepEqual([again.publisher, again.seq], [first.publisher, first.seq]);
  here.socket().say(published(again.request, 3));
  const second = here.socket().expect("publish");
  assert.deepEqual([second.publisher, second.seq], [first.publisher, 2]);
  here.socket().say(published(second.request, 4), delivery(resume[0].join, 2, [3, 4]), live(resume[0].join, 4));
  assert.deepEqual(here.outbox, []);
  assert.deepEqual(here.take(), ["replayed 1", "replayed 2", "live", "replayed 3", "replayed 4", "live"]);
  assert.ok(!here.socket().sent.some(({ name }) => name === "join"));
});

test("a void position is read again from the beginning", () => {
  const here = world();
  const { join } = here.open("new");
  here.socket().say(delivery(join, 0, [9]));
  here.socket().onclose({ code: 1006 });
  here.pass(500);
  here.socket().onopen();
  const { resume } = here.socket().expect("hello");
  here.socket().say(welcome((to) => to.int(1).int(0).int(resume[0].join).int(108).int(77).int(1).int(4)));
  const rejoin = here.socket().expect("join");
  assert.equal(rejoin.start, 1, "earliest");
  here.socket().say(joined(rejoin.request, rejoin.join, 0, 77), delivery(rejoin.join, 0, [1]));
  assert.deepEqual(here.take(), ["replayed 9", "notice", "replayed 1"]);
  assert.ok(!here.socket().sent.some(({ name }) => name === "join"), "joined once");
});

test("a resume that is refused for now is tried again later", () => {
  const here = world();
  here.open();
  here.socket().onclose({ code: 1006 });
  here.pass(500);
  here.socket().onopen();
  const refused = (to) => to.int(2).int(0).int(201).string("full").raw([1]).int(2000);
  here.socket().say(welcome(refused));
  assert.ok(!here.socket().sent.some(({ name }) => name === "join"));
  here.pass(2000);
  assert.equal(here.socket().expect("join").start, 3, "after the position");
});

test("credit is granted for what was taken, and not before", () => {
  const here = world();
  const { join } = here.open();
  const payload = "x".repeat(50000);
  for (const offset of [1, 2, 3]) here.socket().say(delivery(join, offset - 1, [offset], payload));
  assert.ok(!here.socket().sent.some(({ name }) => name === "credit"));
  here.take();
  const { join: granted, bytes } = here.socket().expect("credit");
  assert.equal(granted, join);
  const body = Protocol.decode(delivery(join, 0, [1], payload))[0].body.length;
  assert.equal(bytes, 3 * body);
});

test("a hole in the log is noticed, and the room joined again behind what is there", () => {
  const here = world();
  const { join } = here.open();
  here.socket().say(delivery(join, 0, [1]), delivery(join, 2, [3]));
  here.socket().expect("leave");
  here.pass(1000);
  const rejoin = here.socket().expect("join");
  assert.deepEqual([rejoin.start, rejoin.position.offset], [3, 1]);
  here.socket().say(delivery(join, 2, [3]));
  assert.deepEqual(here.take(), ["replayed 1", "notice"], "pushes of the old join are ignored");
});

test("goodbyes and close codes say whether and when to come back", () => {
  const goodbye = (reconnect, after) =>
    frame(134, (to) => to.int(302).string("maintenance").raw([reconnect ? 1 : 0]).int(after));
  let here = world();
  here.open();
  here.socket().say(goodbye(true, 4000));
  here.socket().onclose({ code: 4302 });
  assert.equal(here.state(), "waiting");
  const wait = here.states.at(-1).until - here.now;
  assert.ok(wait >= 4000 && wait < 5500, `${wait}`);
  for (const code of [4600, 1003]) {
    here = world();
    here.open();
    here.socket().onclose({ code });
    assert.equal(here.state(), "closed");
    here.pass(600000);
    assert.equal(here.sockets.length, 1);
    here.client.connect();
    assert.equal(here.sockets.length, 2, "but a person may try");
  }
  here = world();
  here.open();
  here.socket().say(goodbye(false, 0));
  here.socket().onclose({ code: 1006 });
  assert.equal(here.state(), "closed");
});

test("waiting doubles up to its bound and begins anew after a welcome", () => {
  const here = world();
  here.client.enter("tea", "earliest");
  here.client.connect();
  const waits = [];
  for (let round = 0; round < 8; round++) {
    here.socket().onclose({ code: 1006 });
    waits.push(here.states.at(-1).until - here.now);
    here.pass(waits.at(-1));
  }
  assert.deepEqual(waits, [500, 1000, 2000, 4000, 8000, 15000, 15000, 15000]);
  here.socket().onopen();
  here.socket().say(welcome());
  here.socket().onclose({ code: 1006 });
  assert.equal(here.states.at(-1).until - here.now, 500);
});

test("a refused message is given back, and those behind it go out", () => {
  const here = world();
  here.open();
  here.client.publish("bad");
  here.client.publish("good");
  const bad = here.socket().expect("publish");
  here.socket().say(error(bad.request, 115, false, 0));
  assert.deepEqual(here.failed, [["bad", "no"]]);
  const good = here.socket().expect("publish");
  assert.equal(good.seq, bad.seq, "the refused one has taken no seq");
  here.socket().say(error(good.request, 300, true, 5000));
  assert.deepEqual(here.outbox, ["good"]);
  here.pass(5000);
  const retried = here.socket().expect("publish");
  assert.deepEqual([retried.seq, retried.publisher], [good.seq, good.publisher]);
  here.socket().say(published(retried.request, 1));
  assert.equal(here.client.pending, 0);
});

test("a forgotten publisher takes a new identity, and only what was surely not stored is sent under it", () => {
  const here = world();
  here.open();
  here.client.publish("never stored");
  const first = here.socket().expect("publish");
  here.socket().say(error(first.request, 113, false, 0));
  const renamed = here.socket().expect("publish");
  assert.notEqual(renamed.publisher, first.publisher);
  assert.equal(renamed.seq, 1);
  here.socket().onclose({ code: 1006 });
  here.pass(500);
  here.socket().onopen();
  here.socket().say(welcome());
  const again = here.socket().expect("publish");
  assert.equal(again.publisher, renamed.publisher);
  here.socket().say(error(again.request, 113, false, 0));
  assert.deepEqual(here.failed, [["never stored", "no"]], "it may be stored: a person decides");
});

test("a connection on which nothing comes back is given up", () => {
  const here = world();
  here.open();
  here.pass(25000);
  const ping = here.socket().expect("ping");
  here.socket().say(frame(71, (to) => to.int(ping.request).int(TIME)));
  here.pass(25000);
  here.socket().expect("ping");
  here.pass(15000);
  assert.ok(here.sockets[0].closed);
  assert.ok(here.sockets.length >= 2, "and another is opened");
});

test("what cannot be read ends the connection for good", () => {
  const here = world();
  here.open();
  here.socket().say(unhex("027fff"));
  assert.equal(here.state(), "closed");
  assert.ok(here.socket().closed);
});

test("a room is left for another, and its late pushes are ignored", () => {
  const here = world();
  const { join } = here.open();
  here.client.enter("other", "last");
  assert.equal(here.socket().expect("leave").join, join);
  const other = here.socket().expect("join");
  assert.deepEqual([other.room, other.start, other.count], ["other", 2, 100]);
  here.socket().say(delivery(join, 0, [1]), joined(other.request, other.join, 0), delivery(other.join, 0, [4]));
  assert.deepEqual(here.take(), ["replayed 4"]);
});
