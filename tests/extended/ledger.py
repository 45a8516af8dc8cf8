"""Publishes, writes down what was acknowledged, and compares it with what can be read.

ledger.py WS_PORT FILE ACTION…

  publish COUNT [BYTES]  must all be acknowledged
  fill                   large ones, until one is refused as storage_full
  refused CODE[,CODE]    20 publishes, all of which must be refused with one of these codes
  publish_or_refused CODE[,CODE]  5 publishes, each of which may be acknowledged or refused so
  unreadable CODE[,CODE] reading the room from its beginning fails with one of these codes, and the session goes on
  again                  what was refused or not answered, once more as it was: must be acknowledged
  storm SECONDS          as many as go over 4 connections into 12 rooms, until the time is over or the server is gone
  read                   every acknowledged record is there at its offset, each room in order, nothing twice; and nothing
                         else but what was refused or not answered, whose result nobody can know

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


def storm(seconds):
    deadline = time.monotonic() + seconds
    counts = [0] * 4

    def run(index):
        choose = random.Random()
        publisher, seqs, waiting = os.urandom(16), collections.Counter(), collections.deque()
        try:
            with Session(port, timeout=seconds + 60) as one:
                while time.monotonic() < deadline:
                    while len(waiting) < 32:
                        room = f"storm/{choose.randrange(12)}"
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


def read():
    sent, known = entries()
    total = others = 0
    with Session(port, timeout=120) as one:
        for room in sorted({room for room, *_ in sent.values()}):
            reader = one.join(room, EARLIEST)
            one.until(lambda: reader.live)
            seqs, seen = collections.defaultdict(int), {}
            for found in reader.records:
                name = found.payload[:24].hex()
                if name not in sent or found.payload != payload_of(name, sent[name][3]):
                    raise SystemExit(f"FAILED: {room} #{found.offset} was never sent")
                if found.seq != seqs[found.publisher] + 1 or (found.publisher, found.seq) != sent[name][1:3]:
                    raise SystemExit(f"FAILED: {room} #{found.offset} has the seq {found.seq} behind {seqs[found.publisher]}")
                seqs[found.publisher] = found.seq
                seen[found.offset] = name
            lost = [offset for offset, name in known[room].items() if seen.get(offset) != name]
            if lost:
                raise SystemExit(f"FAILED: {len(lost)} of {len(known[room])} acknowledged records of {room} are lost: {lost[:5]}")
            total += len(known[room])
            others += len(seen) - len(known[room])
            one.leave(reader)
    print(f"all {total} acknowledged records are read, in order, once; {others} of unknown result, too")


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
    storm(float(rest[0]))
elif action == "read":
    read()
else:
    raise SystemExit(__doc__)
