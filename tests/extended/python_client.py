"""Walks through docs/protocol.md with a client that was written from it: python_client.py WS_PORT STEP [STATE_FILE].

Step `first` does everything that one run of a server allows; step `second`, after a restart of the server, what must
have survived it.
"""

import json
import os
import pathlib
import random
import re
import sys
import time

from client import (EARLIEST, NEW, WANT, Broken, Closed, Position, Refused, Session, Socket, after, after_page, around_page,
                    before_page, credits, data, frame, frames_of, hello, histories, integer, joins, last, leaves, option, pings,
                    publishes, record, records_of, rooms, since, string, summaries)

port, step, state_path = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
PAGE = pathlib.Path(__file__).parents[2] / "docs/protocol.md"
done = 0


def check(condition, claim):
    global done
    if not condition:
        raise AssertionError(claim)
    done += 1


def refused(code, action, claim=""):
    try:
        action()
    except Refused as refusal:
        check(refusal.code == code, f"{claim}: {refusal}, and not {code}")
        return refusal
    raise AssertionError(f"{claim}: was not refused with {code}")


def closed(code, wire, claim):
    """The frames until the close, which has this code."""
    found = []
    try:
        while True:
            found += frames_of(wire.receive())
    except Closed as end:
        check(end.code == code, f"{claim}: closed with {end.code}, and not {code}")
    return found


def examples():
    """What the page shows, as bytes."""
    found = {}
    for name, block in re.findall(r"```hex (\w+)\n(.*?)```", PAGE.read_text(), re.S):
        found[name] = bytes.fromhex("".join(line.split("#")[0] for line in block.splitlines()))
    return found


def the_examples_of_the_page():
    shown = examples()
    key = bytes.fromhex("00112233445566778899aabbccddeeff")
    place = Position(6000000000000, 7)
    own = {
        "hello": hello("demo 1.0"),
        "hello_resume": hello("demo 1.0", [(3, "tea", place, 65536), (4, "Küche", Position(6000000000000, 0), None)]),
        "hello_token": hello("", token="secret"),
        "join_new": joins(1, 3, "tea", NEW),
        "join_earliest": joins(2, 3, "tea", EARLIEST, 262144),
        "join_last": joins(3, 3, "tea", last(50)),
        "join_after": joins(4, 3, "tea", after(place)),
        "join_since": joins(5, 3, "tea", since(1760000000000000)),
        "credit": credits(6, 3, 131072),
        "leave": leaves(7, 3),
        "publish": publishes(8, "tea", key, 1, [record(b"hi")]),
        "publish_many": publishes(9, "tea", key, 2, [record(b"hi!", "edit", 7, [("lang", b"en")]), record(b"\0\xff\x80")], 7),
        "history_before": histories(10, "tea", before_page(), 100),
        "history_after": histories(11, "tea", after_page(place), 100),
        "history_around": histories(12, "tea", around_page(place), 20),
        "rooms": rooms(13, "te", "tea", 100),
        "summary": summaries(14, ["tea", "Küche"]),
        "ping": pings(15),
    }
    for name, written in own.items():
        check(frame(written) == shown[name], f"the example {name}")
    numbers = dict(re.findall(r"^\| (\d+) \| (\w+) \| server \|.*\| yes \|$", PAGE.read_text(), re.M))
    for number, name in numbers.items():
        example = shown["error_busy" if name == "error" else name]
        check([one for one, _ in frames_of(example)] == [name], f"the example {name}")
    check(len(records_of(shown["batch_runs"])) == 6, "the body of three runs")


def a_session():
    with Session(port) as one:
        check(one.welcome["version"] == 1 and one.welcome["user"] == "", "version 1, anonymous")
        check(one.welcome["features"] == [], "no features")
        check(abs(one.welcome["time"] / 1e6 - time.time()) < 60, "the server's clock in microseconds")
        table = re.search(r"<!-- limits -->(.*?)<!-- end -->", PAGE.read_text(), re.S)[1]
        defaults = {name: int(value) for name, value in re.findall(r"^\| (\w+) \| (\d+) \|", table, re.M)}
        check(one.limits == defaults, "the limits of the page")
        pong = one.answer(one.ask(pings), "pong")
        check(pong["time"] >= one.welcome["time"], "a pong")


def publish_and_read():
    with Session(port) as writer, Session(port) as reader:
        empty = reader.join("tea", EARLIEST)
        check((empty.answer["first"], empty.answer["head"], empty.answer["start"]) == (0, 0, 0), "an empty room")
        reader.until(lambda: empty.live)
        first = writer.publish("tea", b"one")
        check(first["first"] == first["last"] and not first["duplicate"], "one record")
        many = writer.publish("tea", b"two", b"three", b"")
        check(many["first"] > first["last"] and many["last"] > many["first"], "three records")
        reader.until(lambda: len(empty.records) == 4)
        check([one.payload for one in empty.records] == [b"one", b"two", b"three", b""], "all, in order")
        check([one.seq for one in empty.records] == [1, 2, 3, 4], "their seqs")
        check({one.publisher for one in empty.records} == {writer.publisher}, "their publisher")
        check(empty.records[0].offset == first["first"] and empty.records[3].offset == many["last"], "their offsets")
        check(empty.records[0].time == first["time"] and empty.records[1].time == many["time"], "their times")

        # Every start.
        newest, times = empty.position, [one.time for one in empty.records]
        epoch = empty.epoch
        for start, expected in ((NEW, []), (EARLIEST, [1, 2, 3, 4]), (last(2), [3, 4]), (last(0), []), (last(99), [1, 2, 3, 4]),
                                (after(Position(epoch, 0)), [1, 2, 3, 4]), (after(Position(epoch, first["last"])), [2, 3, 4]),
                                (after(Position(epoch, newest)), []), (since(times[1]), [2, 3, 4]), (since(0), [1, 2, 3, 4]),
                                (since(times[3] + 60_000_000), [])):
            one = reader.join("tea", start)
            reader.until(lambda: one.live)
            check([record.seq for record in one.records] == expected, f"start {start.hex()}: {one.records}")
            check(one.marks == [("live", newest)], "live once, at the head")
            reader.leave(one)
        # Two readers of one room in a session.
        twice = reader.join("tea", EARLIEST)
        writer.publish("tea", b"four")
        reader.until(lambda: len(twice.records) == 5 and len(empty.records) == 5)
        check(twice.records == empty.records, "both see the same")

        # A kind, a reference, headers.
        headers = [("lang", b"en"), ("", b"\xff")]
        body = record("ünï".encode(), "edit", first["first"], headers)
        writer.answer(writer.ask(publishes, "tea", os.urandom(16), 1, [body]), "published")
        reader.until(lambda: len(empty.records) == 6)
        seen = empty.records[-1]
        check((seen.kind, seen.reference, seen.headers, seen.payload.decode()) == ("edit", first["first"], headers, "ünï"),
              "kind, reference and headers come back")

        # Positions that are void.
        refused(108, lambda: reader.join("tea", after(Position(epoch + 1, 1)), 77), "another epoch")
        refused(109, lambda: reader.join("tea", after(Position(epoch, empty.position + 1000)), 77), "beyond the head")
        reader.join("tea", NEW, 77)  # The id is free again.
        refused(106, lambda: reader.join("tea", NEW, 77), "an id in use")
        refused(107, lambda: reader.answer(reader.ask(leaves, 4711)), "leave of what is not joined")
        refused(107, lambda: reader.answer(reader.ask(credits, 4711, 1)), "credit of what is not joined")


def identities():
    key = os.urandom(16)
    with Session(port) as one:
        def publish(seq, *payloads, publisher=key, expect=None):
            request = one.ask(publishes, "ids", publisher, seq, [record(payload) for payload in payloads], expect)
            return one.answer(request, "published")

        stored = publish(1, b"a", b"b")
        again = publish(1, b"a", b"b")
        check(again["duplicate"] and again["time"] == 0, "a repeat is a duplicate")
        check((again["first"], again["last"]) == (stored["first"], stored["last"]), "with its original offsets")
        part = publish(2, b"b")
        check(part["duplicate"] and part["first"] == stored["last"], "a part of it is a repeat, too")
        check(publish(1, b"a", b"b", expect=0)["duplicate"], "a repeat comes before expect")
        refused(110, lambda: publish(1, b"a", b"c"), "other content")
        refused(110, lambda: publish(1, b"a", b"b", b"c"), "goes on beyond")
        refused(110, lambda: publish(2, b"b", b"c"), "goes on beyond")
        refused(111, lambda: publish(4, b"d"), "a seq is left out")
        refused(113, lambda: publish(5, b"x", publisher=os.urandom(16)), "an unknown publisher beyond 1")
        third = publish(3, b"c", expect=stored["last"])
        refused(114, lambda: publish(4, b"d", expect=stored["last"]), "another head")
        check(publish(4, b"d")["first"] > third["first"], "the refused one left nothing")
        # Those behind a refused one are refused.
        requests = [one.ask(publishes, "ids", key, seq, [record(b"z")], expect)
                    for seq, expect in ((5, 1), (6, None), (7, None))]
        codes = []
        for request in requests:
            try:
                one.answer(request)
                codes.append(None)
            except Refused as refusal:
                codes.append(refusal.code)
        check(codes == [114, 111, 111], f"those behind a refused one: {codes}")
        # The newest 1,024 seqs are remembered.
        for first in range(5, 1605, 100):
            publish(first, *[b"%d" % seq for seq in range(first, first + 100)])
        check(publish(1604 - 1023, b"%d" % (1604 - 1023))["duplicate"], "the oldest that must be remembered")
        old = refused(112, lambda: publish(1, b"a"), "far older")
        check(not old.retry, "too_old is not worth a retry")


def pages():
    with Session(port) as one:
        for first in range(1, 1001, 50):
            one.publish("pages", *[b"%04d" % number for number in range(first, first + 50)])
        reader = one.join("pages", EARLIEST)
        one.until(lambda: reader.live)
        everything = reader.records
        check(len(everything) == 1000, "a thousand")
        epoch = reader.epoch
        back, place = [], None
        while True:
            fields, found = one.history("pages", before_page(place), 73)
            check(len(found) <= 73 and fields["epoch"] == epoch, "a page")
            back = found + back
            if not fields["more"]:
                break
            place = Position(epoch, found[0].offset)
        check(back == everything, "backwards: everything")
        forth, place = [], None
        while True:
            fields, found = one.history("pages", after_page(place), 73)
            forth += found
            if not fields["more"]:
                break
            place = Position(epoch, found[-1].offset)
        check(forth == everything, "forwards: everything")
        middle = everything[500]
        fields, found = one.history("pages", around_page(Position(epoch, middle.offset)), 21)
        check(len(found) == 21 and found[10] == middle and fields["more"], "around: as even as can be")
        _, found = one.history("pages", around_page(Position(epoch, everything[0].offset)), 20)
        check(found == everything[:10], "around the oldest one: nothing makes up for the side that has none")
        _, found = one.history("pages", around_page(Position(epoch, everything[-1].offset)), 7)
        check(found == everything[-4:], "around the newest one: 3 before it, and itself")
        _, found = one.history("pages", after_page(Position(epoch, everything[-1].offset)), 5)
        check(found == [], "nothing behind the head")
        refused(108, lambda: one.history("pages", after_page(Position(epoch + 1, 0)), 5), "a page of another epoch")
        refused(109, lambda: one.history("pages", after_page(Position(epoch, everything[-1].offset + 9)), 5), "beyond the head")
        for _ in range(12):
            one.publish("pages of large ones", bytes(200_000))
        for name in ("before", "after"):
            fields, found = one.history("pages of large ones", before_page() if name == "before" else after_page(), 12)
            check(len(found) == 5 and fields["more"], f"a page is bounded in bytes: {len(found)}")
        eighth = one.history("pages of large ones", before_page(), 12)[1][0]
        fields, found = one.history("pages of large ones", around_page(Position(epoch, eighth.offset)), 12)
        check(eighth in found and fields["more"], f"around: itself is included, however large its neighbours are: {found}")
        _, found = one.history("nothing here", before_page(), 5)
        check(found == [], "a page of a room without records")

        # Lists of rooms.
        for name in ("list/b", "list/a", "list/ä", "list/c"):
            one.publish(name, name.encode() * 100)
        names, behind = [], ""
        while True:
            fields = one.answer(one.ask(rooms, "list/", behind, 3), "room_list")
            names += [entry["room"] for entry in fields["rooms"]]
            if not fields["more"]:
                break
            behind = names[-1]
        check(names == ["list/a", "list/b", "list/c", "list/ä"], f"in the order of their bytes: {names}")
        entry, empty = one.answer(one.ask(summaries, ["list/b", "never"]), "room_list")["rooms"]
        check(entry["last"]["payload"] == (b"list/b" * 100)[:256] and entry["last"]["payload_bytes"] == 600, "the newest, cut")
        check(entry["last"]["offset"] == entry["head"] and entry["cursor"] is None, "its offset")
        check((empty["first"], empty["head"], empty["time"], empty["last"]) == (0, 0, 0, None), "a room without records")


def credit_is_kept():
    with Session(port) as one:
        for _ in range(40):
            one.publish("credit", *[bytes(1000)] * 50)
        poor = one.join("credit", EARLIEST, credit=0)
        one.answer(one.ask(pings))
        check(poor.body_bytes == 0 and not poor.live, "nothing without credit")
        granted = 0
        largest = 65536
        while not poor.live:
            one.ask(credits, poor.join, 150_000)
            granted += 150_000
            one.until(lambda: poor.body_bytes >= granted or poor.live)
            one.answer(one.ask(pings))
            check(poor.body_bytes < granted + largest, f"overdrawn by one delivery at most: {poor.body_bytes} of {granted}")
        check(len(poor.records) == 2000, "all in the end")
        # A reader without credit delays no other one.
        other = one.join("credit", EARLIEST)
        one.until(lambda: other.live)
        one.leave(poor)
        one.ask(credits, other.join, 2**64 - 1)
        one.ask(credits, other.join, 2**64 - 1)
        one.publish("credit", b"end")
        one.until(lambda: other.records[-1].payload == b"end")
        check(len(one.answers) == one.request - len([0 for r in range(1, one.request + 1) if r not in one.answers]), "")


def resuming():
    with Session(port) as one:
        for number in range(1, 101):
            one.send("resume/a", b"%d" % number)
        one.publish("resume/b", b"x")
        a = one.join("resume/a", EARLIEST, 3)
        one.until(lambda: len(a.records) >= 40)
        place = Position(a.epoch, a.records[39].offset)
    resume = [(3, "resume/a", place, None), (4, "resume/b", Position(place.epoch + 5, 1), None),
              (5, "resume/b", Position(place.epoch, 1 << 50), None), (6, "", Position(place.epoch, 0), None),
              (7, "resume/b", Position(place.epoch, 0), 0)]
    with Session(port, resume=resume) as two:
        results = two.welcome["resumed"]
        check([one["result"] for one in results] == ["joined", "void", "void", "refused", "joined"], f"{results}")
        check([one["code"] for one in results if "code" in one] == [108, 109, 103], "and why")
        check(all(one["request"] == 0 for one in results), "their request is 0")
        a = two.subscriptions[3]
        check(a.answer["start"] == place.offset, "behind the position")
        two.until(lambda: a.live)
        check([record.payload for record in a.records] == [b"%d" % number for number in range(41, 101)], "the rest, once")
        two.ask(credits, 7, 1)
        two.until(lambda: two.subscriptions[7].live)
        check(len(two.subscriptions[7].records) == 1, "paced from the start")
        two.join("resume/b", NEW, 4)  # The ids of what was void are free.
    refusal = refused(104, lambda: Session(port, client="x" * 256), "a long name of a client")
    check(not refusal.retry, "do not come back")
    many = [(number, "resume/a", place, None) for number in range(1, 1002)]
    refused(104, lambda: Session(port, resume=many), "more rooms than a session may have")


def refusals():
    with Session(port) as one:
        limits = one.limits
        refused(103, lambda: one.publish("", b"x"), "an empty name")
        refused(103, lambda: one.publish("a\tb", b"x"), "a control character")
        refused(103, lambda: one.publish("é" * 128, b"x"), "256 bytes")
        one.publish("é" * 127, b"x")
        payload = bytes(limits["payload_bytes"])
        one.publish("large", payload)
        refused(104, lambda: one.publish("large", payload + b"x"), "a large payload")

        def single(**fields):
            return one.answer(one.ask(publishes, "large", os.urandom(16), 1, [record(b"x", **fields)]))

        single(kind="k" * limits["kind_bytes"])
        refused(104, lambda: single(kind="k" * (limits["kind_bytes"] + 1)), "a long kind")
        single(headers=[("n", b"v")] * limits["headers"])
        refused(104, lambda: single(headers=[("n", b"v")] * (limits["headers"] + 1)), "many headers")
        refused(104, lambda: single(headers=[("n" * (limits["header_name_bytes"] + 1), b"")]), "a long name of a header")
        refused(104, lambda: single(headers=[("n", bytes(limits["header_value_bytes"] + 1))]), "a long value of a header")
        refused(104, lambda: single(headers=[("n", bytes(1000))] * 9), "headers too long together")
        one.answer(one.ask(publishes, "large", os.urandom(16), 1, [record(b"")] * limits["publish_records"]))
        refused(104, lambda: one.answer(one.ask(publishes, "large", os.urandom(16), 1,
                                                [record(b"")] * (limits["publish_records"] + 1))), "many records")
        refused(104, lambda: one.answer(one.ask(publishes, "large", os.urandom(16), 1, [record(bytes(210_000))] * 5)),
                "a large publish")
        for want in (b"\0\0\0\0", b"\1\1\0\0", b"\1\0\1\0", b"\1\0\2\0", b"\1\0\0\1"):
            refused(105, lambda: one.answer(one.ask(joins, 9, "tea", NEW, None, want)), f"want {want.hex()}")
        refused(105, lambda: one.answer(one.ask(joins, 9, "tea", b"\5" + string("read"))), "the start cursor")
        shown = examples()
        for name in ("refresh", "signal", "cursor_set", "cursor_get", "presence_set", "presence_set_leave", "presence_get",
                     "room_create", "room_update", "room_delete"):
            # The request's id is the third byte of each of these examples.
            one.request += 1
            check(shown[name][2] < 251 and one.request < 251, name)
            one.wire.send(shown[name][:2] + bytes([one.request]) + shown[name][3:])
            refused(105, lambda: one.answer(one.request), name)
        # Many frames in a message, a message in many fragments.
        one.request += 2
        both = frame(pings(one.request - 1)) + frame(pings(one.request))
        for at, byte in enumerate(both):
            one.wire.send(bytes([byte]), 2 if at == 0 else 0, at == len(both) - 1)
        one.answer(one.request)
        one.answer(one.request - 1)

    def ends(code, why, *messages, opcode=2, first=frame(hello("end")), goodbye=None):
        wire = Socket(port)
        for message in ([first] if first else []) + list(messages):
            wire.send(message, opcode)
        found = closed(code, wire, why)
        if goodbye is not None:
            check(found[-1][0] == "goodbye", f"{why}: a goodbye comes last, not {found[-1]}")
            check((found[-1][1]["code"], found[-1][1]["reconnect"]) == (goodbye, code < 4500), f"{why}: {found[-1]}")

    ends(4602, "a ping before the hello", frame(pings(1)), first=None, goodbye=102)
    ends(4600, "a second hello", frame(hello("again")), goodbye=100)
    ends(4600, "another magic", frame(hello("end", magic=b"HTTP")), first=None, goodbye=100)
    ends(4600, "a frame of length 0", b"\0", goodbye=100)
    ends(4600, "half a frame in a message", frame(pings(1))[:-1], goodbye=100)
    ends(4600, "an unknown frame", frame(b"\x3f"), goodbye=100)
    ends(4600, "a frame of the server's", frame(b"\x43\1"), goodbye=100)
    ends(4600, "an integer in a longer form", frame(b"\x09\xfb\x07\x00"), goodbye=100)
    ends(4600, "bytes behind a value", frame(pings(1) + b"\0"), goodbye=100)
    ends(4600, "a malformed request that is not supported", frame(b"\x0a\1\5abc"), goodbye=100)
    ends(4601, "another version", frame(hello("end", versions=(2, 9))), first=None, goodbye=101)
    ends(4605, "a token", frame(hello("end", token="secret")), first=None, goodbye=105)
    ends(4604, "a frame over the limit", integer(1_114_112) + b"\5", goodbye=104)
    ends(1003, "a text message", b"hi", opcode=1, first=None)
    ends(4600, "a number from 192 up is skipped by clients only", frame(b"\xf0anything"), goodbye=100)
    # The highest version that both speak.
    wire = Socket(port)
    wire.send(frame(hello("end", versions=(1, 200))))
    check(frames_of(wire.receive())[0][1]["version"] == 1, "version 1 of 1 to 200")
    wire.close()
    # Nothing for as long as a hello may take.
    wire = Socket(port)
    began = time.monotonic()
    found = closed(4102, wire, "no hello")
    check(3 < time.monotonic() - began < 9, "within 5 seconds")
    check(found[-1][1]["reconnect"] and found[-1][1]["code"] == 102, "hello_required, come again")
    # The handshake.
    for options, claim in ((dict(offer=None), "no sub-protocol"), (dict(offer="chat"), "another one"),
                           (dict(path="/v2/ws"), "another path")):
        try:
            Socket(port, **options)
            raise AssertionError(claim)
        except Refused as refusal:
            check(400 <= refusal.code < 500, f"{claim}: {refusal}")
    refused(403, lambda: Socket(port, origin="https://elsewhere.example"), "a foreign origin")
    Socket(port, origin=f"http://127.0.0.1:{port}").close()


def in_flight():
    with Session(port, timeout=60) as one:
        count = one.limits["requests_in_flight"]
        message = b""
        for _ in range(4 * count):
            one.request += 1
            message += frame(pings(one.request))
        one.wire.send(message)
        answered = {"pong": 0, "busy": 0}
        for request in range(1, one.request + 1):
            try:
                one.answer(request, "pong")
                answered["pong"] += 1
            except Refused as refusal:
                check(refusal.code == 200 and refusal.retry, "busy")
                answered["busy"] += 1
        check(answered["pong"] >= count and sum(answered.values()) == 4 * count, f"{answered}")
        # Far more publishes than may be in flight: all are answered, in order.
        requests = [one.send("flight", bytes(20_000)) for _ in range(300)]
        places = [one.answer(request, "published")["first"] for request in requests]
        check(places == sorted(set(places)), "in the order in which they were sent")


def what_must_survive():
    key = os.urandom(16)
    with Session(port) as one:
        for seq in range(1, 201):
            one.ask(publishes, "survive", key, seq, [record(b"%d" % seq)])
        stored = one.answer(200, "published")
        reader = one.join("survive", last(100))
        one.until(lambda: reader.live)
        state = dict(key=key.hex(), last=stored["last"], epoch=reader.epoch, offset=reader.records[49].offset)
        state_path.write_text(json.dumps(state))


def what_did_survive():
    state = json.loads(state_path.read_text())
    key = bytes.fromhex(state["key"])
    place = Position(state["epoch"], state["offset"])
    with Session(port, resume=[(1, "survive", place, None)]) as one:
        check(one.welcome["resumed"][0]["result"] == "joined", "the position is good after a restart")
        reader = one.subscriptions[1]
        one.until(lambda: reader.live)
        check([record.seq for record in reader.records] == list(range(151, 201)), "the rest, once")
        again = one.answer(one.ask(publishes, "survive", key, 200, [record(b"200")]), "published")
        check(again["duplicate"] and again["last"] == state["last"], "a repeat is known after a restart")
        refused(110, lambda: one.answer(one.ask(publishes, "survive", key, 200, [record(b"x")])), "and a conflict")
        check(not one.answer(one.ask(publishes, "survive", key, 201, [record(b"201")]))["duplicate"], "and the next seq")
        one.until(lambda: reader.records[-1].seq == 201)


def a_goodbye():
    """The server is told to stop by the script when this has joined; the goodbye must come."""
    with Session(port, timeout=60) as one:
        one.join("tea", NEW)
        print("joined", flush=True)
        refusal = refused(302, lambda: one.until(lambda: False), "a shutdown")
        check(refusal.retry and refusal.after_ms <= 5000, "reconnect, spread")
        closed(4302, one.wire, "a shutdown")


STEPS = {
    "first": [the_examples_of_the_page, a_session, publish_and_read, identities, pages, credit_is_kept, resuming, refusals,
              in_flight, what_must_survive],
    "second": [what_did_survive],
    "goodbye": [a_goodbye],
}
for action in STEPS[step]:
    before, began = done, time.monotonic()
    try:
        action()
    except Exception:
        print(f"FAILED: {action.__name__}", flush=True)
        raise
    print(f"{action.__name__.replace('_', ' ')}: {done - before} checks in {time.monotonic() - began:.1f} s", flush=True)
