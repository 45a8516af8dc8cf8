"""Publishers and subscribers that go on across all restarts of a server, and the judge of what they have written down.

history.py WS_PORT publish FOLDER NAME ROOM…    publishes into the rooms in turn, until the file FOLDER/stop is there
history.py WS_PORT subscribe FOLDER NAME ROOM…  reads them from the beginning, and comes back where it was, until it is ended
history.py WS_PORT lines FOLDER NAME            lines for `roomlog pub`, at a modest pace
history.py WS_PORT judge FOLDER ROOM…           compares everything with what can be read

In FOLDER each has a file of its own, a line for each event:
  NAME.sent      PAYLOAD ROOM SEQ, before it goes out (`lines`: PAYLOAD, for `roomlog pub NAME`)
  NAME.acked     PAYLOAD OFFSET, as soon as it is acknowledged (`roomlog pub --ack`: OFFSET, the nth for the nth line)
  NAME.seen      ROOM EPOCH OFFSET PAYLOAD, as it is delivered (`roomlog sub --format json`: NAME.json)
  NAME.epochs    EPOCH, for every join

A payload is a name of its own, a blank, and padding that follows from it. The judge finds fault unless, in each room: what
was acknowledged is stored with that offset; what is stored was sent, once; a publisher's records are in its order and none
is missing; each subscriber has been delivered exactly the stored records up to some offset, in order, without a hole; the
chain of `prev` is whole; and the epoch is one and the same everywhere.
"""

import collections
import glob
import itertools
import json
import os
import random
import sys
import time

from client import EARLIEST, Closed, Refused, Session, after, publishes, record

port, action, folder, rest = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
WINDOW = 16


def payload_of(name):
    size = int(name.rsplit("-", 1)[1])
    return (name + " " + "x" * size).encode()


def new_name(who, number):
    # The size is in the name, so that the whole payload can be checked.
    return f"{who}-{number}-{random.choice((0, 10, 100, 300, 2000))}"


def stopped():
    return os.path.exists(os.path.join(folder, "stop"))


def book(name, what):
    return open(os.path.join(folder, f"{name}.{what}"), "a", buffering=1)


def across(name, body):
    """Gives sessions to a function, one after the other for as long as the server comes back, until it returns."""
    deadline = time.monotonic() + 120
    while True:
        try:
            one = Session(port, client=name, timeout=60)
            deadline = time.monotonic() + 120
            try:
                return body(one)
            finally:
                one.wire.socket.close()
        except (Closed, OSError, TimeoutError):
            pass
        except Refused as refusal:
            if refusal.code < 200:
                raise
        if time.monotonic() > deadline:
            raise SystemExit(f"FAILED: {name} has waited for the server for too long")
        time.sleep(0.02)


def publish(name, rooms):
    sent, acked, done = book(name, "sent"), book(name, "acked"), collections.deque(maxlen=8)
    publisher, seqs, waiting = os.urandom(16), collections.Counter(), collections.OrderedDict()
    numbers = itertools.count(1)

    def session(one):
        asked = collections.deque()

        def ask(room, seq, text, offset=None):
            asked.append((one.ask(publishes, room, publisher, seq, [record(payload_of(text))]), room, seq, text, offset))

        # What was answered must be known; what was not goes out once more as it was, in order.
        for entry in list(done) + [(room, seq, text) for (room, seq), text in waiting.items()]:
            ask(*entry)
        while asked or not stopped():
            while len(asked) < WINDOW and not stopped():
                number = next(numbers)
                room, text = rooms[number % len(rooms)], new_name(name, number)
                seqs[room] += 1
                sent.write(f"{text} {room} {seqs[room]}\n")
                waiting[room, seqs[room]] = text
                ask(room, seqs[room], text)
            request, room, seq, text, offset = asked.popleft()
            stored = one.answer(request, "published")
            if offset is None:
                acked.write(f"{text} {stored['first']}\n")
                del waiting[room, seq]
                done.append((room, seq, text, stored["first"]))
            elif not stored["duplicate"] or stored["first"] != offset:
                raise SystemExit(f"FAILED: {text} was acknowledged as {offset}, and then as {stored}")
            time.sleep(0.001)

    across(name, session)


def subscribe(name, rooms):
    seen, epochs, places = book(name, "seen"), book(name, "epochs"), {}

    def session(one):
        readers = []
        for number, room in enumerate(rooms, 1):
            reader = one.join(room, after(places[room]) if room in places else EARLIEST, number)
            reader.behind_gap = False  # Nothing is trimmed: `prev` is where we are.
            epochs.write(f"{reader.epoch}\n")
            readers.append(reader)
        while True:
            for reader in readers:
                for found in reader.records:
                    text = found.payload.split(b" ", 1)[0].decode()
                    if found.payload != payload_of(text):
                        raise SystemExit(f"FAILED: {name} was delivered something else than {text}")
                    seen.write(f"{reader.room} {reader.epoch} {found.offset} {text}\n")
                reader.records.clear()
                places[reader.room] = reader.place()
            one.step()

    across(name, session)


def lines(name):
    number, sent = 0, book(name, "sent")
    while not stopped():
        number += 1
        text = new_name(name, number)
        sent.write(text + "\n")
        sys.stdout.write(payload_of(text).decode() + "\n")
        sys.stdout.flush()
        time.sleep(0.005)


def read_lines(path):
    """The whole lines of a file: who is killed leaves a part of one."""
    with open(path) as file:
        text = file.read()
    return text[: text.rfind("\n") + 1].splitlines()


def name_of(path):
    return os.path.basename(path).rsplit(".", 1)[0]


def judge(rooms):
    faults = []
    sent, acked = {}, {}
    for path in glob.glob(os.path.join(folder, "*.sent")):
        for line in read_lines(path):
            words = line.split()
            sent[words[0]] = words[1:]
    for path in glob.glob(os.path.join(folder, "*.acked")):
        found = read_lines(path)
        if found and len(found[0].split()) == 1:
            texts = [line.split()[0] for line in read_lines(path[: -len("acked")] + "sent")]
            acked.update((text, int(offset)) for text, offset in zip(texts, found))
        else:
            acked.update((line.split()[0], int(line.split()[1])) for line in found)
    stored, where, epochs = {}, {}, set()
    with Session(port, timeout=300) as one:
        for room in rooms:
            reader = one.join(room, EARLIEST)
            reader.behind_gap = False
            one.until(lambda: reader.live)
            epochs.add(reader.epoch)
            stored[room], seqs = [], collections.Counter()
            for found in reader.records:
                text = found.payload.split(b" ", 1)[0].decode()
                if text not in sent or found.payload != payload_of(text):
                    faults.append(f"{room} #{found.offset} was never sent: {found.payload[:40]}")
                elif text in where:
                    faults.append(f"{room} #{found.offset} is stored twice, first at {where[text]}: {text}")
                where[text] = (room, found.offset)
                seqs[found.publisher] += 1
                if found.seq != seqs[found.publisher]:
                    faults.append(f"{room} #{found.offset} has the seq {found.seq}, and should have {seqs[found.publisher]}")
                stored[room].append((found.offset, text))
            one.leave(reader)
    for text, offset in acked.items():
        if text not in where:
            faults.append(f"{text} is lost; it was acknowledged with the offset {offset}")
        elif where[text][1] != offset or sent[text] and sent[text][0] != where[text][0]:
            faults.append(f"{text} was acknowledged with the offset {offset}, and is stored as {where[text]}")
    delivered, readers = 0, 0
    seen = collections.defaultdict(list)
    for path in glob.glob(os.path.join(folder, "*.seen")):
        for line in read_lines(path):
            room, epoch, offset, text = line.split()
            seen[name_of(path), room].append((int(offset), text))
            epochs.add(int(epoch))
    for path in glob.glob(os.path.join(folder, "*.json")):
        prev = 0
        for line in read_lines(path):
            one = json.loads(line)
            seen[name_of(path), one["room"]].append((one["offset"], one["payload"].split(" ", 1)[0]))
            if one["prev"] != prev:
                faults.append(f"{name_of(path)} was delivered #{one['offset']} with prev {one['prev']} behind {prev}")
            prev = one["offset"]
    for path in glob.glob(os.path.join(folder, "*.epochs")):
        epochs.update(map(int, read_lines(path)))
    for (who, room), found in seen.items():
        delivered += len(found)
        readers += 1
        for mine, theirs in zip(found, stored[room]):
            if mine != theirs:
                faults.append(f"{who} was delivered {mine} of {room}, and {theirs} is stored")
                break
        if len(found) > len(stored[room]):
            faults.append(f"{who} was delivered {len(found) - len(stored[room])} records of {room} that are not stored")
    if len(epochs) != 1:
        faults.append(f"there are several epochs: {sorted(epochs)}")
    if not acked or not delivered:
        faults.append("nothing was acknowledged or delivered: nothing was tested")
    total = sum(map(len, stored.values()))
    print(f"{len(sent)} sent, {len(acked)} acknowledged, {total} stored, {delivered} delivered to {readers} readers, {len(faults)} faults")
    for fault in faults[:20]:
        print(f"FAILED: {fault}")
    sys.exit(1 if faults else 0)


if action == "publish":
    publish(rest[0], rest[1:])
elif action == "subscribe":
    subscribe(rest[0], rest[1:])
elif action == "lines":
    lines(rest[0])
elif action == "judge":
    judge(rest)
else:
    raise SystemExit(__doc__)
