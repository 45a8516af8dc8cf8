"""Publishes, writes down what was acknowledged, and compares it with what can be read.

ledger.py WS_PORT FILE ACTION…

  publish COUNT [BYTES]  must all be acknowledged
  fill                   large ones, until one is refused as storage_full
  refused CODE[,CODE]    20 publishes, all of which must be refused with one of these codes
  publish_or_refused CODE[,CODE]  5 publishes, each of which may be acknowledged or refused so
  unreadable CODE[,CODE] reading the room from its beginning fails with one of these codes, and the session goes on
  again                  what was refused or not answered, once more as it was: must be acknowledged
  storm SECONDS [short]  as many as go over 4 connections into 12 rooms, until the time is over or the server is gone;
                         with `short` most go into rooms short/0 to short/3, at times all of them
  work                   large ones into the room `one` and the room `short/0`; each may be refused for the broker's trouble
  read                   every acknowledged record is there at its offset, each room in order, nothing twice; and nothing
                         else but what was refused or not answered, whose result nobody can know. Of rooms short/*, which
                         retention trims, this holds from their first record on
  lost                   as read, but the newest acknowledged records of a room may be missing; how many are, and the epoch

FILE has a line for each publish: `sent ROOM PUBLISHER SEQ PAYLOAD` before it goes out, and `acked ROOM OFFSET PAYLOAD` as
soon as it is answered. PAYLOAD is the first 24 bytes, random, in hexadecimal; the rest of the payload follows from them.
"""

import collections
import os
import random
import sys
import threading
import time

from client import EARLIEST, Closed, Refused, Session, pings, publishes, record

port, path, action, rest = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
ledger = open(path, "a+", buffering=1)
lock = threading.Lock()


def note(*words):
    # One write for each line: what is written is kept whatever becomes of this process.
    with lock:
        ledger.write(" ".join(map(str, words)) + "\n")


def payload_of(name, size):
    return (bytes.fromhex(name) * (size // 24 + 1))[:max(size, 24)]


def send(one, room, publisher, seq, size):
    name = os.urandom(24).hex()
    note("sent", room, publisher.hex(), seq, f"{name}/{size}")
    return name, one.ask(publishes, room, publisher, seq, [record(payload_of(name, size))])


def acked(room, name, stored):
    note("acked", room, stored["first"], name)


def publish(one, room, publisher, seq, size):
    name, request = send(one, room, publisher, seq, size)
    acked(room, name, one.answer(request, "published"))


def storm(seconds, short):
    deadline = time.monotonic() + seconds
    counts = [0] * 4

    def room_of(choose):
        # In two of five seconds nothing is published that is to stay: volumes without anything in them that does.
        if short and (time.monotonic() % 5 < 2 or choose.random() < 0.7):
            return f"short/{choose.randrange(4)}"
        return f"storm/{choose.randrange(12)}"

    def run(index):
        choose = random.Random()
        publisher, seqs, waiting = os.urandom(16), collections.Counter(), collections.deque()
        try:
            with Session(port, timeout=seconds + 60) as one:
                while time.monotonic() < deadline:
                    while len(waiting) < 32:
                        room = room_of(choose)
                        seqs[room] += 1
                        waiting.append((room, *send(one, room, publisher, seqs[room], choose.choice((24, 100, 1000, 8000)))))
                    room, name, request = waiting.popleft()
                    acked(room, name, one.answer(request, "published"))
                    counts[index] += 1
        except (Closed, OSError, TimeoutError):
            pass
        except Refused as refusal:
            # The disk is gone, or the server is about to be.
            if refusal.code < 300:
                print(f"FAILED: {refusal}", flush=True)
                os._exit(1)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{sum(counts)} records acknowledged")


def work():
    refusals = collections.Counter()
    with Session(port, timeout=60) as one:
        publisher, seqs = os.urandom(16), collections.Counter()
        for number in range(72):
            room = "short/0" if number % 3 else "one"
            seqs[room] += 1
            try:
                publish(one, room, publisher, seqs[room], 60_000)
            except Refused as refusal:
                if not 300 <= refusal.code < 400:
                    raise
                refusals[f"{refusal}"] += 1
                # What came of it nobody knows; `again` will repeat it as it was.
                publisher = os.urandom(16)
                seqs.clear()
    print(f"{72 - sum(refusals.values())} of 72 acknowledged" + "".join(f"; {count} {said}" for said, count in refusals.items()))


def entries():
    """What was sent, by payload, and what was acknowledged, by room."""
    sent, known = {}, collections.defaultdict(dict)
    ledger.seek(0)
    for line in ledger:
        words = line.split()
        if words[0] == "sent" and len(words) == 5:
            name, size = words[4].split("/")
            sent[name] = (words[1], bytes.fromhex(words[2]), int(words[3]), int(size))
        elif words[0] == "acked" and len(words) == 4:
            known[words[1]][int(words[2])] = words[3]
    return sent, known


def read(may_lose=False):
    sent, known = entries()
    total = others = missing = trimmed = 0
    epoch = None
    with Session(port, timeout=120) as one:
        for room in sorted({room for room, *_ in sent.values()}):
            reader = one.join(room, EARLIEST)
            one.until(lambda: reader.live)
            epoch = reader.epoch
            seqs, seen, last = collections.defaultdict(int), {}, 0
            # Retention takes the oldest records, and tells which.
            first = max([reader.answer["first"]] + [to + 1 for _, to in reader.gaps]) if room.startswith("short/") else 0
            for found in reader.records:
                name = found.payload[:24].hex()
                if name not in sent or found.payload != payload_of(name, sent[name][3]):
                    raise SystemExit(f"FAILED: {room} #{found.offset} was never sent")
                if any(last < to < found.offset for _, to in reader.gaps):
                    seqs.clear()  # Retention has overtaken this reader.
                if first and found.publisher not in seqs:
                    seqs[found.publisher] = found.seq - 1
                last = found.offset
                if found.seq != seqs[found.publisher] + 1 or (found.publisher, found.seq) != sent[name][1:3]:
                    raise SystemExit(f"FAILED: {room} #{found.offset} has the seq {found.seq} behind {seqs[found.publisher]}")
                seqs[found.publisher] = found.seq
                seen[found.offset] = name
            lost = [offset for offset, name in known[room].items() if offset >= first and seen.get(offset) != name]
            if may_lose and (not lost or min(lost) > max(seen, default=0)):
                missing += len(lost)
            elif lost:
                raise SystemExit(f"FAILED: {len(lost)} of {len(known[room])} acknowledged records of {room} are lost: {lost[:5]}")
            kept = sum(offset >= first for offset in known[room])
            total += kept - len(lost)
            trimmed += len(known[room]) - kept
            others += len(seen) - kept + len(lost)
            one.leave(reader)
    if may_lose:
        print(f"{missing} of {missing + total} acknowledged records are lost, all of them the newest of their rooms; epoch {epoch}")
    else:
        gone = f"; {trimmed} were trimmed by retention" if trimmed else ""
        print(f"all {total} acknowledged records are read, in order, once; {others} of unknown result, too{gone}")


if action == "publish":
    with Session(port, timeout=60) as one:
        publisher = os.urandom(16)
        for seq in range(1, int(rest[0]) + 1):
            publish(one, "one", publisher, seq, int(rest[1]) if len(rest) > 1 else 128)
elif action == "fill":
    with Session(port, timeout=60) as one:
        publisher = os.urandom(16)
        for seq in range(1, 50_000):
            try:
                publish(one, "one", publisher, seq, 60_000)
            except Refused as refusal:
                if refusal.code != 300 or not refusal.retry:
                    raise
                print(f"refused behind {seq - 1} records of 60,000 bytes: {refusal}")
                break
        else:
            raise SystemExit("FAILED: never full")
elif action == "refused":
    codes = [int(code) for code in rest[0].split(",")]
    with Session(port, timeout=60) as one:
        for _ in range(20):
            try:
                publish(one, "one", os.urandom(16), 1, 128)
            except Refused as refusal:
                if refusal.code not in codes or not refusal.retry:
                    raise
                said = refusal
            else:
                raise SystemExit("FAILED: was acknowledged")
    print(f"publishes are refused: {said}")
elif action == "publish_or_refused":
    codes = [int(code) for code in rest[0].split(",")]
    with Session(port, timeout=60) as one:
        for _ in range(5):
            try:
                publish(one, "one", os.urandom(16), 1, 128)
                print("acknowledged")
            except Refused as refusal:
                if refusal.code not in codes:
                    raise
                print(f"refused: {refusal}")
elif action == "unreadable":
    codes = [int(code) for code in rest[0].split(",")]
    with Session(port, timeout=60) as one:
        try:
            reader = one.join("one", EARLIEST)
            one.until(lambda: reader.live or reader.left)
            code, said = reader.left and reader.left["code"], reader.left and reader.left["message"]
        except Refused as refusal:
            code, said = refusal.code, refusal.message
        if code not in codes:
            raise SystemExit(f"FAILED: {code}, and not one of {codes}")
        one.answer(one.ask(pings), "pong")
    print(f"reading fails: {code} {said}")
elif action == "again":
    sent, known = entries()
    done = {name for room in known.values() for name in room.values()}
    count = duplicates = 0
    with Session(port, timeout=60) as one:
        for name, (room, publisher, seq, size) in sent.items():
            if name not in done:
                request = one.ask(publishes, room, publisher, seq, [record(payload_of(name, size))])
                stored = one.answer(request, "published")
                acked(room, name, stored)
                count += 1
                duplicates += stored["duplicate"]
    print(f"{count} repeated, {duplicates} of which had been stored before")
elif action == "storm":
    storm(float(rest[0]), "short" in rest[1:])
elif action == "work":
    work()
elif action == "read":
    read()
elif action == "lost":
    read(may_lose=True)
else:
    raise SystemExit(__doc__)
