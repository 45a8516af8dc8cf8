"""Publishers and subscribers of the program, for a network that fails; and what they saw, judged.

network.py drive FOLDER ROOM SECONDS URL…   for each URL one `roomlog pub` and one `roomlog sub`, of the program in
                                            ROOMLOG_BIN; lines are typed for so many seconds, and all must end well
network.py check FOLDER ROOM HOST WS_PORT   what they wrote down against the room, read by another client than theirs:
                                            each line acknowledged once, stored once, at the offset that was said, in
                                            its publisher's order; each subscriber was given all of it, in order, once,
                                            each record naming the one before it

FOLDER gets `lines-N`, what was typed into publisher N, `acks-N`, the offsets it printed, and `sub-N`, what subscriber N
printed. NETWORK_RATE (100) is how many lines each publisher is given in a second.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "extended"))
from client import EARLIEST, Session

PATIENCE = 200
action, folder, room, rest = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]


def path(name, index):
    return os.path.join(folder, f"{name}-{index}")


def name_of(index):
    return f"{os.path.abspath(folder)} {index}"


def lines(index, count):
    """Mostly short ones; some that do not fit into a packet, a few that do not fit into a window."""
    choose = random.Random()
    for number in range(count):
        size = choose.choice((0, 20, 100, 100, 100, 1000, 3000)) if number % 50 else 30_000
        yield f"{index} {number} ".encode() + os.urandom(size // 2).hex().encode()


def feed(publisher, typed, rate):
    began = time.monotonic()
    try:
        for number, line in enumerate(typed):
            time.sleep(max(0, began + number / rate - time.monotonic()))
            publisher.stdin.write(line + b"\n")
            publisher.stdin.flush()
        publisher.stdin.close()
    except BrokenPipeError:
        pass  # Its exit code says why.


def drive(seconds, urls):
    program, rate = os.environ["ROOMLOG_BIN"], int(os.environ.get("NETWORK_RATE", 100))
    count = int(seconds * rate)
    common = ["--insecure", "--timeout", f"{PATIENCE}s", "--url"]
    running, threads, began = {}, [], time.monotonic()
    for index, url in enumerate(urls):
        take = [program, "sub", room, "--from", "earliest", "--format", "json", "--count", str(count * len(urls)), *common, url]
        running[f"sub {url}"] = subprocess.Popen(take, stdout=open(path("sub", index), "wb"))
    for index, url in enumerate(urls):
        give = [program, "pub", room, "--ack", "--publisher", name_of(index), *common, url]
        publisher = subprocess.Popen(give, stdin=subprocess.PIPE, stdout=open(path("acks", index), "wb"))
        running[f"pub {url}"] = publisher
        typed = list(lines(index, count))
        with open(path("lines", index), "wb") as file:
            file.writelines(line + b"\n" for line in typed)
        threads.append(threading.Thread(target=feed, args=(publisher, typed, rate), daemon=True))
        threads[-1].start()
    try:
        while any(process.poll() is None for process in running.values()):
            for what, process in running.items():
                if process.poll():
                    raise SystemExit(f"FAILED: {what} ended with {process.poll()}")
            if time.monotonic() > began + PATIENCE:
                there = {name: sum(1 for _ in open(os.path.join(folder, name), "rb")) for name in os.listdir(folder)}
                raise SystemExit(f"FAILED: not done after {PATIENCE} s; lines: {there}")
            time.sleep(0.05)
        ends = {what: process.poll() for what, process in running.items() if process.poll()}
        if ends:
            raise SystemExit(f"FAILED: ended with {ends}")
    finally:
        for process in running.values():
            process.kill()
    print(f"{len(urls)} publishers and {len(urls)} subscribers ended well after {time.monotonic() - began:.1f} s")


def check(host, port):
    with Session(int(port), host=host, timeout=60) as one:
        reader = one.join(room, EARLIEST)
        one.until(lambda: reader.live)
    stored = reader.records
    at = {record.offset: record for record in stored}
    typed, total = {}, 0
    while os.path.exists(path("lines", total)):
        publisher = hashlib.sha256(name_of(total).encode()).digest()[:16]
        typed[publisher] = open(path("lines", total), "rb").read().splitlines()
        acks = [int(offset) for offset in open(path("acks", total), "rb").read().split()]
        if len(acks) != len(typed[publisher]):
            raise SystemExit(f"FAILED: publisher {total}: {len(acks)} acknowledgements of {len(typed[publisher])} lines")
        for seq, (line, offset) in enumerate(zip(typed[publisher], acks), 1):
            found = at.get(offset)
            if found is None or (found.publisher, found.seq, found.payload) != (publisher, seq, line):
                raise SystemExit(f"FAILED: publisher {total}: line {seq} was acknowledged at {offset}, where there is {found}")
        total += 1
    for publisher, its in typed.items():
        seqs = [record.seq for record in stored if record.publisher == publisher]
        if seqs != list(range(1, len(its) + 1)):
            raise SystemExit(f"FAILED: the room has {len(seqs)} records of a publisher's {len(its)}, or not in order")
    if len(stored) != sum(map(len, typed.values())):
        raise SystemExit(f"FAILED: the room has {len(stored)} records of {sum(map(len, typed.values()))}")
    for index in range(total):
        before = 0
        seen = [json.loads(line) for line in open(path("sub", index), "rb")]
        for number, (one, record) in enumerate(zip(seen, stored)):
            same = (one["offset"], bytes.fromhex(one["publisher"]), one["seq"], one["payload"].encode())
            if same != (record.offset, record.publisher, record.seq, record.payload) or one["prev"] != before:
                raise SystemExit(f"FAILED: subscriber {index}: its record {number + 1} is {one['offset']} behind {one['prev']}, "
                                 f"and the room's is {record.offset} behind {before}")
            before = record.offset
        if len(seen) != len(stored):
            raise SystemExit(f"FAILED: subscriber {index} was given {len(seen)} records of {len(stored)}")
    print(f"{len(stored)} records: each acknowledged once, stored once, and given to {total} subscribers once, in order")


if action == "drive":
    drive(float(rest[0]), rest[1:])
elif action == "check":
    check(*rest)
else:
    raise SystemExit(__doc__)
