"""fsync_order.py drive WS_PORT: publishes and reads in ways that leave every record recognisable in a trace.
fsync_order.py judge TRACE COMMITS: reads strace's record of it, and fails where the order is not kept."""

import collections
import re
import sys

from client import EARLIEST, Session

MARK = re.compile(rb"mark-[0-9]{6}-end")


def drive(port):
    number = 0
    sessions = [Session(port, timeout=60) for _ in range(4)]
    readers = [Session(port, timeout=60) for _ in range(2)]
    joined = [reader.join("order", EARLIEST) for reader in readers]

    def mark():
        nonlocal number
        number += 1
        return b"mark-%06d-end" % number

    # One at a time: each waits for its own commit.
    for _ in range(200):
        sessions[0].publish("order", mark())
    # Many at a time, and larger ones: commits gather.
    for _ in range(20):
        waiting = [(one, one.send("order", *[mark() for _ in range(size)])) for size in (1, 2, 5) for one in sessions for _ in range(8)]
        for one, request in waiting:
            one.answer(request, "published")
    sessions[0].publish("order", mark() + bytes(200_000))
    for reader, room in zip(readers, joined):
        reader.until(lambda: len(room.records) == number)
    for one in sessions + readers:
        one.wire.close()
    print(f"{number} records published and read")


LINE = re.compile(r"^(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\((\d+)<([^>]*(?:->[^>]*)?)>)(.*)$")


def text_of(arguments):
    return bytes.fromhex("".join(re.findall(r"\\x([0-9a-f]{2})", "".join(re.findall(r'"((?:\\x[0-9a-f]{2})*)"', arguments)))))


def events(path):
    """(line, kind, file, bytes): kind is `write` when it begins, `written`, `sync` and `synced` when they return well."""
    open_calls = {}
    with open(path, encoding="latin-1") as trace:
        for at, line in enumerate(trace):
            found = LINE.match(line)
            if not found:
                continue
            thread, resumed, call, _, name, rest = found.groups()
            if resumed:
                call, name, sent = open_calls.pop(thread)
            else:
                sent = text_of(rest) if "sync" not in call else b""
                yield at, "sync" if "sync" in call else "write", name, sent
                if rest.endswith("<unfinished ...>"):
                    open_calls[thread] = (call, name, sent)
                    continue
            returned = re.search(r"= (-?\d+)", rest)
            if returned and int(returned[1]) >= 0:
                yield at, "synced" if "sync" in call else "written", name, sent


def judge(path, commits):
    written, durable = {}, {}  # Marks: in which journal file and when written; and when an fdatasync had it.
    begun = {}  # Of a file: when the fdatasync began that is under way.
    pending = collections.defaultdict(list)
    syncs = collections.Counter()
    shown, acknowledged, early = collections.Counter(), 0, []
    for at, kind, name, sent in events(path):
        journal = "/journal/" in bytes.fromhex("".join(re.findall(r"\\x(..)", name))).decode() if "\\x" in name else "/journal" in name
        if kind == "written" and journal:
            for mark in MARK.findall(sent):
                written.setdefault(mark, at)
                pending[name].append(mark)
        elif kind == "sync" and journal:
            begun[name] = list(pending[name])
        elif kind == "synced" and journal:
            syncs[name] += 1
            for mark in begun.get(name, ()):
                durable.setdefault(mark, at)
            pending[name] = [mark for mark in pending[name] if mark not in durable]
        elif kind == "write" and "TCP" in name:
            for mark in MARK.findall(sent):
                shown[mark] += 1
                if mark not in durable:
                    early.append((at, "shown", mark))
            for first, last in acknowledgements(sent):
                # Offsets of the one room are those of the marks: records were committed in this order.
                for offset in range(first, last + 1):
                    acknowledged += 1
                    if offset > len(durable):
                        early.append((at, "acknowledged", offset))
    if early:
        raise SystemExit(f"FAILED: {len(early)} left before the fdatasync had returned, the first at line {early[0]}")
    total = len(written)
    if not total or set(written) != set(durable) or acknowledged != total or any(count < 2 for count in shown.values()) or len(shown) != total:
        raise SystemExit(f"FAILED: {total} written, {len(durable)} synced, {acknowledged} acknowledged, {len(shown)} shown")
    count = sum(syncs.values())
    print(f"{total} records: each written, synced, and only then acknowledged and shown to 2 readers")
    print(f"{count} fdatasync of the journal for {commits} commits, {total / commits:.1f} records in a commit")
    # Opening and closing the directory sync the journal a few times of their own.
    if not commits <= count <= commits + 8:
        raise SystemExit("FAILED: not one fdatasync for each commit")


def acknowledgements(message):
    """The (first, last) of each `published` in what is written to a socket: WebSocket messages of whole frames."""
    from client import Broken, frames_of

    at, found = 0, []
    while at + 2 <= len(message) and message[at] in (0x82, 0x89, 0x8A, 0x88):
        size, head = message[at + 1], 2
        if size in (126, 127):
            head = 4 if size == 126 else 10
            size = int.from_bytes(message[at + 2 : at + head], "big")
        if message[at] == 0x82:
            try:
                frames = frames_of(message[at + head : at + head + size])
            except Broken:
                frames = []  # The rest of a message that an earlier call began.
            found += [(one["first"], one["last"]) for name, one in frames if name == "published" and not one["duplicate"]]
        at += head + size
    return found


if sys.argv[1] == "drive":
    drive(int(sys.argv[2]))
else:
    judge(sys.argv[2], int(sys.argv[3]))
