"""Attacks on the WebSocket port by bare sockets, what the server does about each, and its memory before, at most and after.

attacks.py WS_PORT PROCESS [HOST OTHER STRANGER]

PROCESS is the server's. With three addresses there is one attack more: OTHER floods the server at HOST, STRANGER is
served all the same. The server is to have `idle_timeout` = 6 s. What is not here, because it is a matter of one answer
and not of how much: tests/attacks.rs and tests/connections.rs.
"""

import os
import random
import select
import socket
import struct
import sys
import time

from client import EARLIEST, NEW, Broken, Closed, Refused, Session, Socket, before_page, frame, hello, histories
from client import joins, leaves, pings, publishes, record, rooms, summaries
import under_attack
from under_attack import memory

port, process, addresses = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
host = addresses[0] if addresses else "127.0.0.1"
MIB = 1 << 20
attacks = []


def attack(name, most_mib):
    """Names an attack, and says how many MiB the server may take for it at most."""
    def add(run):
        attacks.append((name, most_mib, run))
        return run

    return add


def descriptors():
    return len(os.listdir(f"/proc/{process}/fd"))


def tcp(source=None, timeout=20):
    one = socket.socket()
    one.settimeout(timeout)
    if source:
        one.bind((source, 0))
    one.connect((host, port))
    return one


def upgraded(greet=True, timeout=20):
    one = Socket(port, host=host, timeout=timeout)
    if greet:
        one.send(frame(hello("attack")))
        one.receive()
    return one


def head(first, length):
    """The head of a masked frame; the mask is zeros, so that what follows stands as it is."""
    size = bytes([0x80 | length]) if length < 126 else b"\xfe" + struct.pack(">H", length) if length < 1 << 16 else b"\xff" + struct.pack(">Q", length)
    return bytes([first]) + size + bytes(4)


def ready(sockets, seconds, event=select.POLLIN):
    """Those of some sockets that can be read, or written, within so many seconds; any number of them."""
    polled, by_number = select.poll(), {one.fileno(): one for one in sockets}
    for number in by_number:
        polled.register(number, event)
    return [by_number[number] for number, _ in polled.poll(seconds * 1000)]


def close_of(one):
    """The close code with which the server ends a connection. No ping is answered meanwhile."""
    one.send = lambda *_: None
    try:
        while True:
            one.receive()
    except Closed as end:
        return end.code


def flood(one, piece, most, patience=2):
    """Sends a piece over and over, and reads nothing, until the server takes no more: how many bytes it took."""
    one.socket.setblocking(False)
    sent, left = 0, piece
    while sent < most:
        if not ready([one.socket], patience, select.POLLOUT):
            return sent
        try:
            count = one.socket.send(left)
        except BlockingIOError:
            continue
        except OSError:
            return sent
        sent += count
        left = left[count:] or piece
    return sent


def is_well(limit=5):
    """Others are served, and soon."""
    began = time.monotonic()
    with Session(port, host=host) as one:
        room = f"well/{random.randrange(1 << 40)}"
        reader = one.join(room, NEW)
        one.publish(room, b"well")
        one.until(lambda: reader.records)
    took = time.monotonic() - began
    assert took < limit, f"another client waited for {took:.1f} s"
    return took


def ended_within(sockets, seconds):
    """Waits until the server has ended all of them."""
    deadline, left = time.monotonic() + seconds, set(sockets)
    while left:
        now = time.monotonic()
        assert now < deadline, f"{len(left)} of {len(sockets)} are still open after {seconds} s"
        for one in ready(left, deadline - now):
            try:
                if not one.recv(1 << 16):
                    left.remove(one)
            except OSError:
                left.remove(one)


# ---- Before a session ----


@attack("noise instead of HTTP, 200 times", 4)
def noise():
    for _ in range(200):
        with tcp() as one:
            try:
                one.sendall(os.urandom(random.randrange(1, 4096)))
                one.shutdown(socket.SHUT_WR)
                answer = one.recv(1 << 16)
            except OSError:
                answer = b""
            assert not answer or answer.startswith(b"HTTP/1.1 400"), answer[:80]
    return "400 or closed"


@attack("a header of 2 MB, 500 headers, no key; a token in the URL; compression offered", 4)
def heads():
    plain = "GET /v1/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: roomlog.v1\r\n"
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    secret = "attack-secret-" + os.urandom(8).hex()
    cases = [(plain + key + "X: " + "y" * 2_000_000, 431), (plain + key + "X: y\r\n" * 500, 431), (plain, 400),
             (plain.replace("/v1/ws", f"/v1/ws?token={secret}") + key, 101),
             (plain + key + "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n", 101)]
    for text, status in cases:
        with tcp() as one:
            try:
                one.sendall((text + "\r\n").encode())
            except OSError:
                pass
            try:
                answer = one.recv(1 << 16).decode("latin-1")
            except OSError:
                answer = ""
            assert answer.startswith(f"HTTP/1.1 {status}") or status == 431 and not answer, (status, answer[:200])
            assert "permessage" not in answer
    print(f"secret {secret}", file=sys.stderr)
    return "431, 431, 400; 101 and not compressed"


@attack("400 heads, a byte at a time; 400 who say nothing", 24)
def slow_heads():
    sockets = [tcp() for _ in range(800)]
    began = time.monotonic()
    for one in sockets:
        one.setblocking(False)
    deadline, waits = began + 12, []
    text = b"GET /v1/ws HTTP/1.1\r\n" + b"X-Slow: y\r\n" * 100
    at, left = 0, set(sockets)
    while left:
        assert time.monotonic() < deadline, f"{len(left)} are still open"
        for number, one in enumerate(sockets):
            if number % 2 and one in left:
                try:
                    one.send(text[at : at + 1])
                except OSError:
                    pass
        for one in ready(left, 0.5):
            try:
                if not one.recv(4096):
                    left.remove(one)
            except OSError:
                left.remove(one)
        if at in (1, 6):
            waits.append(is_well(2))
        at += 1
    took = time.monotonic() - began
    for one in sockets:
        one.close()
    return f"all cut within {took:.1f} s; others served in {max(waits) * 1000:.0f} ms"


@attack("3,000 connections, reset at once", 8)
def churn():
    for number in range(3000):
        one = tcp()
        if number % 3 == 0:
            one.sendall(b"GET /v1/ws HTTP/1.1\r\nHost: ")
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()
    return "gone"


# ---- Frames ----


@attack("a close with a reason that is not UTF-8", 2)
def reason():
    one = upgraded()
    one.socket.sendall(head(0x88, 6) + struct.pack(">H", 1000) + b"\xff\xfe\xfd\xfc")
    code = close_of(one)
    assert code == 1007, code
    return "1007"


@attack("lengths of 64 MiB to 2^64 - 1 announced, 25 times each", 4)
def announced():
    for length in (64 * MIB, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        for _ in range(25):
            one = upgraded()
            one.socket.sendall(head(0x82, length))
            code = close_of(one)
            assert code == 1009, (length, code)
    return "1009"


@attack("a MiB announced and not sent, on 500 connections", 16)
def not_sent():
    kept = [upgraded() for _ in range(500)]
    for one in kept:
        one.socket.sendall(head(0x82, MIB) + b"x")
    is_well()
    for one in kept:
        one.socket.close()
    return "waits, reserves nothing"


@attack("480 MB of fragments without an end", 8)
def fragments():
    one = upgraded()
    sent = flood(one, head(0x02, 60_000) + bytes(60_000) + (head(0x00, 60_000) + bytes(60_000)) * 8000, 480_000_000)
    one.socket.setblocking(True)
    code = close_of(one)
    assert code in (1009, None) and sent < 40_000_000, (code, sent)
    second = upgraded()
    second.socket.sendall(head(0x02, 60_000) + bytes(60_000) + (head(0x00, 60_000) + bytes(60_000)) * 18)
    code = close_of(second)
    assert code == 1009, code
    return f"1009; cut after {sent // 1000} kB at most"


@attack("200,000 empty fragments; 60,000 of one byte", 4)
def little_fragments():
    for first, more, count in ((head(0x02, 0), head(0x00, 0), 200_000), (head(0x02, 1) + b"x", head(0x00, 1) + b"x", 60_000)):
        one = upgraded()
        try:
            one.socket.sendall(first + more * 10_000)
            one.socket.sendall(more * (count - 10_000))
        except OSError:
            pass
        code = close_of(one)
        assert code in (1009, None), code
        second = upgraded()
        second.socket.sendall(first + more * 8200)
        assert close_of(second) == 1009
    return "1009"


@attack("messages of 1 MiB that never end, on 400 connections", 200)
def half_messages():
    kept, began = [upgraded() for _ in range(400)], time.monotonic()
    left = {one: memoryview(head(0x82, MIB) + bytes(MIB - 1)) for one in kept}
    for one in kept:
        one.socket.setblocking(False)
    while left and time.monotonic() < began + 20:
        for one, rest in list(left.items()):
            try:
                left[one] = rest[one.socket.send(rest[: 64 << 10]) :]
            except BlockingIOError:
                continue  # Nothing more is read of it.
            except OSError:
                left[one] = b""  # It has been sent away.
            if not left[one]:
                del left[one]
        time.sleep(0.01)
    for one in kept:
        one.socket.settimeout(90)
    is_well()
    codes = [close_of(one) for one in kept]
    away, late = codes.count(4200), codes.count(4303)
    # Who is reset has not seen the close.
    assert away + late + codes.count(None) == len(kept) and away > 0, codes
    return f"{late} kept for {time.monotonic() - began:.0f} s, then 4303; {len(kept) - late} sent away"


@attack("a message a byte every half second", 2)
def slow_message():
    one, began = upgraded(timeout=0.5), time.monotonic()
    one.socket.sendall(head(0x82, 1000))
    while time.monotonic() - began < 15:
        try:
            one.socket.sendall(b"x")
            one.receive()
        except TimeoutError:
            continue
        except Closed as end:
            took = time.monotonic() - began
            assert end.code == 4303 and took < 9, (end.code, took)
            return f"4303 after {took:.1f} s"
    raise AssertionError("still open")


# ---- A session that asks and does not read ----


@attack("RFC 6455 pings without end, pongs unread", 4)
def ping_flood():
    one = upgraded()
    sent = flood(one, (head(0x89, 125) + bytes(125)) * 500, 100 * MIB)
    took = is_well()
    one.socket.close()
    return f"{sent // MIB} MiB taken, at most one pong waits; others served in {took * 1000:.0f} ms"


def unread(name, most_mib, write, most=64 * MIB):
    @attack(name, most_mib)
    def run():
        one = upgraded()
        piece = b"".join(head(0x82, len(asked)) + asked for asked in (frame(write(number)) for number in range(1, 200)))
        sent = flood(one, piece, most)
        assert sent < most, "the server goes on reading from who does not read its answers"
        took = is_well()
        one.socket.close()
        return f"reads no more after {sent // 1024} KiB; others served in {took * 1000:.0f} ms"


unread("pings of the protocol without end, answers unread", 8, pings)
unread("pages of a MiB without end, answers unread", 24, lambda number: histories(number, "large", before_page(), 1000))
unread("lists of 1,000 rooms without end, answers unread", 24, lambda number: rooms(number, "", "", 1000))
unread("summaries of 1,000 rooms without end, answers unread", 24, lambda number: summaries(number, ["large"] * 1000))
unread("refused publishes without end, refusals unread", 8, lambda number: publishes(number, "", bytes(16), 1, [record(b"x")]))


@attack("rooms of 2 MB joined and left unread for 20 s, on 20 connections whose system answers", 16)
def unread_rooms():
    kept = [Session(port, host=host, small_buffer=4096) for _ in range(20)]
    for one in kept:
        one.ask(joins, 1, "large", EARLIEST)
        one.waiting[one.request] = "large"
    time.sleep(20)
    took = is_well()
    for one in kept:
        one.until(lambda one=one: 1 in one.subscriptions and one.subscriptions[1].live)
        assert len(one.subscriptions[1].records) == 40
        one.wire.close()
    return f"slow, and so kept beyond idle_timeout; then all of it; others served in {took * 1000:.0f} ms"


@attack("joins and leaves of 100,000 rooms that are not there", 16)
def join_churn():
    with Session(port, host=host) as one:
        for turn in range(200):
            asked = b""
            for number in range(500):
                request = turn * 1000 + number * 2 + 1
                asked += frame(joins(request, number, f"{'r' * 240}{turn}/{number}", EARLIEST)) + frame(leaves(request + 1, number))
            one.wire.send(asked)
            left = 1000
            while left:
                message = one.wire.receive()
                at = 0
                while at < len(message):
                    length, wide = (message[at], 1) if message[at] < 251 else (struct.unpack_from("<H", message, at + 1)[0], 3)
                    left -= message[at + wide] in (65, 67)
                    at += wide + length
    return "all answered"


@attack("1,000 rooms joined, one more, and 20 more hellos of 10,000 rooms", 24)
def too_many_rooms():
    with Session(port, host=host) as one:
        for number in range(1000):
            one.ask(joins, number, f"many/{number}", NEW)
            one.waiting[one.request] = f"many/{number}"
        one.until(lambda: len(one.answers) == 1000)
        try:
            one.join("one more", NEW, join=5000)
            raise AssertionError("a room too many was joined")
        except Refused as refusal:
            assert refusal.code == 201, refusal
    for _ in range(20):
        second = upgraded(greet=False)
        second.send(frame(hello("x", [(number, "r", (1, 0), None) for number in range(10_000)])))
        code = close_of(second)
        assert code in (4604, 4600), code
    return f"too_many_rooms; close {code}"


if len(addresses) == 3:
    @attack("2,000 connections from one address that say nothing", 40)
    def one_address():
        _, other, stranger = addresses

        def open_many(count):
            kept, refused = [], 0
            for _ in range(count):
                one = tcp(other)
                kept.append(one)
            time.sleep(0.5)
            for one in ready(kept, 0):
                assert one.recv(100).startswith(b"HTTP/1.1 503")
                refused += 1
                kept.remove(one)
                one.close()
            return kept, refused

        kept, refused = open_many(2000)
        assert refused == 1000, f"{refused} of 2,000 were refused"
        began = time.monotonic()
        with tcp(stranger) as one:
            one.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            assert one.recv(100).startswith(b"HTTP/1.1 200"), "a stranger is not served"
        took = time.monotonic() - began
        ended_within(kept, 12)
        for one in kept:
            one.close()
        return f"1,000 refused with 503, another address served in {took * 1000:.0f} ms, all cut in time"


def main():
    with Session(port, host=host) as one:
        for _ in range(40):
            one.publish("large", bytes(50_000))
        for number in range(1000):
            one.send(f"room/{'n' * 200}{number}", b"x" * 500)
        one.until(lambda: len(one.answers) >= 1040)
    # Once over, so that what is allocated once is not put to the account of one of them.
    is_well()
    base = descriptors()
    failed = under_attack.run(attacks, process, is_well, (AssertionError, OSError, Broken, Closed, Refused))
    deadline = time.monotonic() + 30
    while descriptors() > base:
        if time.monotonic() > deadline:
            raise SystemExit(f"FAILED: {descriptors()} descriptors are open, {base} were before")
        time.sleep(0.1)
    if failed:
        raise SystemExit(f"FAILED: {failed} of {len(attacks)} attacks")
    print(f"{len(attacks)} attacks; descriptors as before")


main()
