"""A client of Roomlog in the Python standard library, written from docs/protocol.md alone.

It shares no code with the project and exists to check the page: what is not on the page, it does not know. It is strict:
whatever the page does not allow the server to send raises Broken. The other scripts of this folder use it, too.
"""

import base64
import collections
import hashlib
import os
import socket
import struct
import time

# ---- 1. Primitive encodings ----


class Broken(Exception):
    """The server sent what the page does not allow."""


class Refused(Exception):
    """An answer `error`, or a goodbye."""

    def __init__(self, code, message, retry=False, after_ms=0):
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.retry, self.after_ms = code, message, retry, after_ms


class Closed(Exception):
    """The connection has ended, with this WebSocket close code (None: without one)."""

    def __init__(self, code, reason=""):
        super().__init__(f"closed with {code} {reason}")
        self.code = code


def integer(value):
    for bound, prefix, form in ((251, b"", "<B"), (1 << 16, b"\xfb", "<H"), (1 << 32, b"\xfc", "<I"), (1 << 64, b"\xfd", "<Q")):
        if 0 <= value < bound:
            return prefix + struct.pack(form, value)
    raise ValueError(value)


def data(value):
    return integer(len(value)) + value


def string(value):
    return data(value.encode())


def option(value, write):
    return b"\0" if value is None else b"\1" + write(value)


def listed(values, write):
    return integer(len(values)) + b"".join(map(write, values))


Position = collections.namedtuple("Position", "epoch offset")


def position(value):
    return integer(value[0]) + integer(value[1])


class Reader:
    def __init__(self, text):
        self.text, self.at = text, 0

    def left(self):
        return len(self.text) - self.at

    def take(self, count):
        if count > self.left():
            raise Broken("a value is cut")
        self.at += count
        return self.text[self.at - count : self.at]

    def u8(self):
        return self.take(1)[0]

    def integer(self, wide):
        first = self.u8()
        if first < 251:
            return first
        width = {251: 2, 252: 4, 253: 8}.get(first, 99)
        if width > wide:
            raise Broken("an integer is too wide")
        value = int.from_bytes(self.take(width), "little")
        if value < {2: 251, 4: 1 << 16, 8: 1 << 32}[width]:
            raise Broken("an integer is not in its shortest form")
        return value

    def u16(self):
        return self.integer(2)

    def u32(self):
        return self.integer(4)

    def u64(self):
        return self.integer(8)

    def below_2_53(self):
        value = self.u64()
        if value >= 1 << 53:
            raise Broken("an offset, epoch, time or seq beyond 2^53")
        return value

    def bool(self):
        value = self.u8()
        if value > 1:
            raise Broken("a bool of another byte")
        return value == 1

    def data(self):
        return self.take(self.u64())

    def string(self):
        try:
            return self.data().decode()
        except UnicodeDecodeError as error:
            raise Broken("a text that is not UTF-8") from error

    def option(self, read):
        return read() if self.bool() else None

    def listed(self, read):
        return [read() for _ in range(self.u64())]

    def variant(self, count):
        value = self.u32()
        if value >= count:
            raise Broken("an unknown variant")
        return value

    def end(self):
        if self.left():
            raise Broken("bytes follow the end of a value")


# ---- 6. Records and batch bodies ----

Record = collections.namedtuple("Record", "offset time user publisher seq kind reference headers payload")


def record(payload, kind="", reference=0, headers=()):
    def header(one):
        return string(one[0]) + data(one[1])

    return data(string(kind) + integer(reference) + listed(list(headers), header) + data(payload) + data(b""))


def records_of(body):
    reader = Reader(body)
    if reader.u8() != 1:
        raise Broken("a batch body of another version")
    count, first, span, began = reader.u32(), reader.below_2_53(), reader.u64(), reader.below_2_53()
    found = []
    while reader.left():
        delta, step, time_delta = reader.u64(), reader.u64(), reader.u64()
        user, publisher, seq = reader.string(), bytes(reader.take(16)), reader.below_2_53()
        number, size = reader.u32(), reader.u32()
        area = Reader(reader.take(size))
        if not found and (delta or time_delta) or step < 1 or seq < 1 or number < 1:
            raise Broken("a run's numbers")
        for index in range(number):
            inner = Reader(area.data())
            kind, reference = inner.string(), inner.below_2_53()
            headers = inner.listed(lambda: (inner.string(), bytes(inner.data())))
            payload = bytes(inner.data())
            inner.data()  # The extension.
            inner.end()
            offset = first + delta + index * step
            one = Record(offset, began + time_delta, user, publisher, seq + index, kind, reference, headers, payload)
            if found and not (one.offset > found[-1].offset and one.time >= found[-1].time):
                raise Broken("offsets or times that fall")
            found.append(one)
        area.end()
    if len(found) != count or count < 1 or found[0].offset != first or found[-1].offset != first + span:
        raise Broken("a body that does not add up")
    if len(body) > 65536 and count > 1:
        raise Broken("a body over 65,536 bytes with more than one record")
    return found


# ---- 9. Requests ----

NEW, EARLIEST = b"\0", b"\1"


def last(count):
    return b"\2" + integer(count)


def after(place):
    return b"\3" + position(place)


def since(moment):
    return b"\4" + integer(moment)


WANT = b"\1\0\0\0"


def hello(client, resume=(), versions=(1, 1), token=None, magic=b"RLOG"):
    def one(entry):
        join, room, place, credit = entry
        return integer(join) + string(room) + position(place) + option(credit, integer) + WANT

    body = option(token, string) + string(client) + listed(list(resume), one)
    return b"\1" + magic + bytes(versions) + data(body)


def joins(request, join, room, start, credit=None, want=WANT):
    return b"\2" + integer(request) + integer(join) + string(room) + start + option(credit, integer) + want


def credits(request, join, count):
    return b"\3" + integer(request) + integer(join) + integer(count)


def leaves(request, join):
    return b"\4" + integer(request) + integer(join)


def publishes(request, room, publisher, seq, records, expect=None):
    return (b"\5" + integer(request) + string(room) + publisher + integer(seq) + option(expect, integer)
            + integer(len(records)) + b"".join(records))


def before_page(place=None):
    return b"\0" + option(place, position)


def after_page(place=None):
    return b"\1" + option(place, position)


def around_page(place):
    return b"\2" + position(place)


def histories(request, room, at, limit):
    return b"\6" + integer(request) + string(room) + at + integer(limit)


def rooms(request, prefix="", behind="", limit=100):
    return b"\7" + integer(request) + string(prefix) + string(behind) + integer(limit)


def summaries(request, names):
    return b"\x08" + integer(request) + listed(list(names), string)


def pings(request):
    return b"\x09" + integer(request)


# ---- 10. Answers, 11. Pushes ----

LIMITS = ("frame_bytes payload_bytes kind_bytes headers header_name_bytes header_value_bytes headers_bytes extension_bytes "
          "publish_records publish_bytes page_bytes rooms_per_session requests_in_flight bytes_in_flight idle_timeout_ms "
          "stall_timeout_ms").split()


def joined(r):
    return dict(request=r.u32(), join=r.u32(), epoch=r.below_2_53(), first=r.below_2_53(), head=r.below_2_53(),
                start=r.below_2_53())


def void(r):
    return dict(request=r.u32(), join=r.u32(), code=r.u16(), epoch=r.below_2_53(), first=r.below_2_53(), head=r.below_2_53())


def error(r):
    return dict(request=r.u32(), code=r.u16(), message=r.string(), retry=r.bool(), retry_after_ms=r.u32())


def result(r):
    name, read = (("joined", joined), ("void", void), ("refused", error))[r.variant(3)]
    return dict(read(r), result=name)


def welcome(r):
    return dict(version=r.u8(), session=r.u64(), user=r.string(), time=r.below_2_53(), limits={name: r.u32() for name in LIMITS},
                features=r.listed(r.string), ping_interval_ms=r.u32(), resumed=r.listed(lambda: result(r)))


def page(r):
    def one():
        return dict(at=r.below_2_53(), to=r.below_2_53(), prev=r.below_2_53(), body=r.data())

    return dict(request=r.u32(), epoch=r.below_2_53(), first=r.below_2_53(), head=r.below_2_53(), more=r.bool(),
                deliveries=r.listed(one))


def room_list(r):
    def newest():
        return dict(offset=r.below_2_53(), user=r.string(), kind=r.string(), payload=bytes(r.data()), payload_bytes=r.u32())

    def one():
        return dict(room=r.string(), first=r.below_2_53(), head=r.below_2_53(), time=r.below_2_53(), last=r.option(newest),
                    cursor=r.option(r.u64), unread=r.option(r.u64), members=r.option(r.u32))

    return dict(request=r.u32(), epoch=r.below_2_53(), more=r.bool(), rooms=r.listed(one))


def mark(r):
    return dict(join=r.u32(), offset=r.below_2_53())


def delivery(r):
    return dict(join=r.u32(), at=r.below_2_53(), to=r.below_2_53(), prev=r.below_2_53(), body=r.take(r.left()))


FRAMES = {
    64: ("welcome", welcome),
    65: ("joined", joined),
    66: ("void", void),
    67: ("ok", lambda r: dict(request=r.u32())),
    68: ("published", lambda r: dict(request=r.u32(), first=r.below_2_53(), last=r.below_2_53(), time=r.below_2_53(),
                                     duplicate=r.bool())),
    69: ("page", page),
    70: ("room_list", room_list),
    71: ("pong", lambda r: dict(request=r.u32(), time=r.below_2_53())),
    72: ("error", error),
    128: ("delivery", delivery),
    129: ("live", mark),
    130: ("gap", lambda r: dict(join=r.u32(), at=r.below_2_53(), to=r.below_2_53(), reason=r.variant(1))),
    131: ("lagging", mark),
    132: ("caught_up", mark),
    133: ("left", lambda r: dict(join=r.u32(), code=r.u16(), message=r.string())),
    134: ("goodbye", lambda r: dict(code=r.u16(), reason=r.string(), reconnect=r.bool(), after_ms=r.u32())),
    136: ("fault", error),
}


# ---- 2. Frames ----


def frame(body):
    return integer(len(body)) + body


def frames_of(message):
    """The frames of a message as (name, fields)."""
    reader, found = Reader(message), []
    while reader.left():
        inner = Reader(reader.take(reader.u32()))
        number = inner.u8()
        if number not in FRAMES:
            if number >= 192:
                continue
            raise Broken(f"frame {number} is not on the page, or not sent yet")
        name, read = FRAMES[number]
        fields = read(inner)
        inner.end()
        found.append((name, fields))
    if not found and not message:
        raise Broken("a message without a frame")
    return found


# ---- 3. WebSocket ----


class Socket:
    """RFC 6455, as far as a client needs it."""

    def __init__(self, port, host="127.0.0.1", timeout=20, offer="roomlog.v1", origin=None, path="/v1/ws", small_buffer=0):
        self.socket = socket.socket()
        if small_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, small_buffer)
        self.socket.settimeout(timeout)
        self.socket.connect((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer, self.pings = b"", 0
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [f"GET {path} HTTP/1.1", f"Host: {host}:{port}", "Upgrade: websocket", "Connection: Upgrade",
                 "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}"]
        if offer:
            lines.append(f"Sec-WebSocket-Protocol: {offer}")
        if origin:
            lines.append(f"Origin: {origin}")
        self.socket.sendall("\r\n".join(lines + ["", ""]).encode())
        while b"\r\n\r\n" not in self.buffer:
            self.fill()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        status, *rest = head.decode("latin-1").split("\r\n")
        self.status = int(status.split()[1])
        if self.status != 101:
            raise Refused(self.status, status)
        headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in rest)}
        digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        if headers.get("sec-websocket-accept") != base64.b64encode(digest).decode():
            raise Broken("Sec-WebSocket-Accept")
        if headers.get("sec-websocket-protocol") != "roomlog.v1" or "sec-websocket-extensions" in headers:
            raise Broken("the sub-protocol or an extension")

    def fill(self):
        try:
            more = self.socket.recv(1 << 18)
        except ConnectionResetError:
            more = b""
        if not more:
            raise Closed(None)
        self.buffer += more

    def exactly(self, count):
        while len(self.buffer) < count:
            self.fill()
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def send(self, payload, opcode=2, final=True):
        mask = os.urandom(4)
        size = len(payload)
        length = (bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack(">H", size) if size < 1 << 16
                  else b"\xff" + struct.pack(">Q", size))
        wide = (mask * (size // 4 + 1))[:size]
        masked = (int.from_bytes(payload, "big") ^ int.from_bytes(wide, "big")).to_bytes(size, "big")
        self.socket.sendall(bytes([opcode | (0x80 if final else 0)]) + length + mask + masked)

    def receive(self):
        """The next binary message. Answers pings."""
        whole = b""
        while True:
            first, second = self.exactly(2)
            opcode, size = first & 15, second & 127
            if first & 0x70 or second & 0x80:
                raise Broken("a reserved bit or a mask from a server")
            if size == 126:
                size = struct.unpack(">H", self.exactly(2))[0]
            elif size == 127:
                size = struct.unpack(">Q", self.exactly(8))[0]
            payload = self.exactly(size)
            if opcode == 8:
                raise Closed(struct.unpack(">H", payload[:2])[0] if payload else 1005, payload[2:].decode())
            if opcode == 9:
                self.pings += 1
                self.send(payload, 10)
            elif opcode in (0, 2):
                whole += payload
                if first & 0x80:
                    return whole
            elif opcode != 10:
                raise Broken(f"a WebSocket frame of kind {opcode}")

    def close(self, code=1000):
        """Closes, and waits for the other side to do so."""
        try:
            self.send(struct.pack(">H", code), 8)
            while True:
                self.receive()
        except (Closed, OSError):
            pass
        self.socket.close()


# ---- 5. Life of a session, 7. Reading a room, 8. Publishing ----


class Subscription:
    """A joined room, with the proof that nothing is missing."""

    def __init__(self, room, answer):
        self.room, self.join, self.epoch, self.position = room, answer["join"], answer["epoch"], answer["start"]
        self.answer, self.records, self.marks, self.gaps, self.behind_gap = answer, [], [], [], True
        self.body_bytes, self.left = 0, None

    @property
    def live(self):
        return any(name == "live" for name, _ in self.marks)

    def place(self):
        return Position(self.epoch, self.position)

    def push(self, name, fields):
        if name == "delivery":
            self.body_bytes += len(fields["body"])
            if not fields["prev"] <= self.position < fields["at"]:
                raise Broken(f"{self.room}: {fields['prev']} <= {self.position} < {fields['at']} does not hold")
            if fields["prev"] != self.position and not self.behind_gap:
                raise Broken(f"{self.room}: prev is less than the position, and not behind a start or a gap")
            meant = [one for one in records_of(fields["body"]) if fields["at"] <= one.offset <= fields["to"]]
            if not meant or (meant[0].offset, meant[-1].offset) != (fields["at"], fields["to"]):
                raise Broken("from or to is not the offset of a record")
            self.records += meant
            self.position, self.behind_gap = meant[-1].offset, False
        elif name == "gap":
            if fields["at"] > self.position:
                raise Broken("a gap behind the position")
            self.position, self.behind_gap = max(self.position, fields["to"]), True
            self.gaps.append((fields["at"], fields["to"]))
        elif name == "left":
            self.left = fields
        else:
            if fields["offset"] != self.position:
                raise Broken(f"a mark at {fields['offset']}, not at {self.position}")
            names = [mark for mark, _ in self.marks]
            expected = {"live": "live" not in names, "lagging": "live" in names and names[-1] != "lagging",
                        "caught_up": bool(names) and names[-1] == "lagging"}
            if not expected[name]:
                raise Broken(f"{name} behind {names}")
            self.marks.append((name, fields["offset"]))


class Session:
    """One session. Everything that comes is judged and kept; answers wait by their request."""

    def __init__(self, port, client="page check", resume=(), timeout=20, **options):
        self.wire = Socket(port, timeout=timeout, **options)
        self.timeout, self.request, self.answers, self.goodbye = timeout, 0, {}, None
        self.subscriptions, self.faults, self.waiting = {}, [], {}
        self.publisher, self.seqs = os.urandom(16), collections.Counter()
        self.wire.send(frame(hello(client, resume)))
        self.welcome = None
        self.until(lambda: self.welcome)
        self.limits = self.welcome["limits"]
        if len(self.welcome["resumed"]) != len(resume):
            raise Broken("not one result for each resume")
        for entry, one in zip(resume, self.welcome["resumed"]):
            if one["result"] == "joined":
                # The welcome is the first frame: no push can have come before it.
                self.subscriptions[entry[0]] = Subscription(entry[1], one)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wire.close()

    def step(self):
        """Takes what one message brings."""
        for name, fields in frames_of(self.wire.receive()):
            if self.goodbye:
                raise Broken("a frame behind the goodbye")
            if name == "goodbye":
                self.goodbye = fields
            elif name == "welcome":
                if self.welcome:
                    raise Broken("a second welcome")
                self.welcome = fields
            elif name == "fault":
                self.faults.append(fields)
            elif "request" in fields:
                request = fields["request"]
                if request in self.answers or not 0 < request <= self.request:
                    raise Broken(f"an answer to {request}, which was answered or never asked")
                self.answers[request] = (name, fields)
                if name == "joined":
                    # At once: pushes of the room may follow in the same message.
                    self.subscriptions[fields["join"]] = Subscription(self.waiting.pop(request), fields)
            elif fields["join"] in self.subscriptions:
                self.subscriptions[fields["join"]].push(name, fields)
            else:
                raise Broken(f"{name} for {fields['join']}, which is not joined")

    def until(self, condition):
        """Takes what comes until the condition holds."""
        deadline = time.monotonic() + self.timeout
        while not condition():
            if self.goodbye:
                raise Refused(self.goodbye["code"], self.goodbye["reason"], self.goodbye["reconnect"], self.goodbye["after_ms"])
            if time.monotonic() > deadline:
                raise TimeoutError("what was waited for did not come")
            self.step()
        return condition()

    def ask(self, write, *rest):
        """Sends a request; its id."""
        self.request += 1
        self.wire.send(frame(write(self.request, *rest)))
        return self.request

    def answer(self, request, *expected):
        name, fields = self.until(lambda: self.answers.get(request))
        if name == "error":
            if fields["retry"] != (fields["code"] >= 200):
                raise Broken("retry does not follow from the code")
            raise Refused(fields["code"], fields["message"], fields["retry"], fields["retry_after_ms"])
        if expected and name not in expected:
            raise Broken(f"{name} in answer to what is answered by {expected}")
        return fields

    def join(self, room, start, join=None, credit=None):
        join = max(self.subscriptions, default=0) + 1 if join is None else join
        self.waiting[self.request + 1] = room
        answer = self.answer(self.ask(joins, join, room, start, credit), "joined", "void")
        if "code" in answer:
            raise Refused(answer["code"], "void")
        return self.subscriptions[join]

    def leave(self, subscription):
        self.answer(self.ask(leaves, subscription.join), "ok")
        del self.subscriptions[subscription.join]

    def send(self, room, *payloads, expect=None):
        """Sends a publish; its request."""
        seq = self.seqs[room] + 1
        self.seqs[room] += len(payloads)
        return self.ask(publishes, room, self.publisher, seq, [record(one) for one in payloads], expect)

    def publish(self, room, *payloads, expect=None):
        return self.answer(self.send(room, *payloads, expect=expect), "published")

    def history(self, room, at, limit):
        fields = self.answer(self.ask(histories, room, at, limit), "page")
        found, position = [], None
        for one in fields["deliveries"]:
            meant = [record for record in records_of(one["body"]) if one["at"] <= record.offset <= one["to"]]
            if position is not None and one["prev"] != position or one["prev"] >= one["at"]:
                raise Broken("a page with a hole")
            position = meant[-1].offset
            found += meant
        return fields, found
