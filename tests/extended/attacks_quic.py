"""Attacks on the QUIC port: attacks_quic.py QUIC_PORT PROCESS RETRY_ABOVE HOST.

aioquic makes the packets, without its own sockets, so that it can be stopped after any of them, and made to forget the
limits it was told. What is told of each: bytes sent and got back, and the server's memory before, at most and after.
"""

import os
import random
import select
import socket
import ssl
import sys
import time

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

import under_attack
from client import frame, hello, pings, publishes, record

port, process, above, host = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
server = (host, port)
INITIAL_BYTES = 1200


def udp():
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.connect(server)
    one.setblocking(False)
    return one


class Peer:
    """One QUIC connection, driven by hand."""

    def __init__(self, alpn=("roomlog/1",), window=1 << 20):
        configuration = QuicConfiguration(is_client=True, alpn_protocols=list(alpn) or None, server_name="localhost",
                                          verify_mode=ssl.CERT_NONE, idle_timeout=20, max_stream_data=window)
        self.quic = QuicConnection(configuration=configuration)
        self.socket, self.streams, self.end, self.shaken = udp(), {}, None, False
        self.quic.connect(server, now=time.monotonic())

    def send(self):
        for datagram, _ in self.quic.datagrams_to_send(now=time.monotonic()):
            try:
                self.socket.send(datagram)
            except OSError:
                pass

    def step(self, patience=0.05):
        """Sends what there is, and takes what comes."""
        self.send()
        timer = self.quic.get_timer()
        wait = patience if timer is None else max(0, min(patience, timer - time.monotonic()))
        if select.select([self.socket], [], [], wait)[0]:
            for _ in range(100):
                try:
                    self.quic.receive_datagram(self.socket.recv(65536), server, now=time.monotonic())
                except (BlockingIOError, ConnectionRefusedError):
                    break
        elif timer is not None and time.monotonic() >= timer:
            self.quic.handle_timer(now=time.monotonic())
        while event := self.quic.next_event():
            if isinstance(event, events.HandshakeCompleted):
                self.shaken = True
            elif isinstance(event, events.StreamDataReceived):
                self.streams[event.stream_id] = self.streams.get(event.stream_id, b"") + event.data
            elif isinstance(event, events.ConnectionTerminated):
                self.end = event
        self.send()

    def until(self, condition, seconds=20):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "what was waited for did not come"
            self.step()

    def write(self, message):
        self.quic.send_stream_data(0, message)

    def session(self):
        self.write(frame(hello("attack")))
        self.until(lambda: self.end or 0 in self.streams)
        assert not self.end, self.end
        return self

    def close(self):
        self.quic.close()
        self.send()
        self.socket.close()


def is_well(limit=5):
    """Another client is let in and acknowledged, and soon."""
    began, one = time.monotonic(), Peer().session()
    answers = len(one.streams[0])
    one.write(frame(publishes(1, "well", os.urandom(16), 1, [record(b"well")])))
    one.until(lambda: len(one.streams[0]) > answers)
    one.close()
    took = time.monotonic() - began
    assert took < limit, f"another client waited for {took:.1f} s"
    return took


def initial():
    """The first datagram of a connection that says nothing more."""
    configuration = QuicConfiguration(is_client=True, alpn_protocols=["roomlog/1"], server_name="localhost", verify_mode=ssl.CERT_NONE)
    quic = QuicConnection(configuration=configuration)
    quic.connect(server, now=time.monotonic())
    return quic.datagrams_to_send(now=time.monotonic())[0][0]


def answered(one, seconds):
    """Everything that comes back: datagrams and bytes."""
    count = size = 0
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([one], [], [], left)[0]:
            try:
                size += len(one.recv(65536))
                count += 1
            except OSError:
                pass
    return count, size


def amplification():
    """One Initial, and silence: all that is sent to an address that has proved nothing, retransmissions included."""
    one, datagram = udp(), initial()
    assert len(datagram) == INITIAL_BYTES, len(datagram)
    one.send(datagram)
    count, size = answered(one, 7)
    assert count > 0, "no answer at all"
    most = len(datagram) if above == 0 else 3 * len(datagram)
    assert size <= most, f"{size} bytes for {len(datagram)}: {size / len(datagram):.2f}x"
    return f"{len(datagram)} bytes, {size} back in {count} datagrams: {size / len(datagram):.2f}x"


def small_initial():
    one = udp()
    for size in (20, 600, 1199):
        one.send(initial()[:size])
    count, size = answered(one, 1)
    assert (count, size) == (0, 0), (count, size)
    return "no answer to 20, 600 and 1,199 bytes"


def unknown_version():
    one = udp()
    head = bytes([0xC0]) + b"\x1a\x2a\x3a\x4a" + b"\x08" + os.urandom(8) + b"\x08" + os.urandom(8)
    one.send(head + bytes(100))
    count, _ = answered(one, 0.5)
    assert count == 0, "an answer to a short packet of an unknown version"
    one.send(head + bytes(1200 - len(head)))
    count, size = answered(one, 0.5)
    assert count == 1 and size < 100, (count, size)
    return f"version negotiation of {size} bytes, none for a short packet"


def garbage():
    one, sent = udp(), 0
    began, replies = time.monotonic(), 0
    for number in range(20_000):
        size = 1200 if number % 2 else random.randrange(1, 1500)
        data = bytearray(os.urandom(size))
        if number % 4 == 1:
            data[0] |= 0xC0
            data[1:5] = b"\0\0\0\1"  # Looks like an Initial of version 1, or another long packet.
        try:
            one.send(data)
        except OSError:
            pass
        sent += size
        if number % 100 == 0:
            while select.select([one], [], [], 0)[0]:
                try:
                    replies += len(one.recv(65536))
                except OSError:
                    break
    took = is_well()
    _, rest = answered(one, 0.5)
    replies += rest
    assert replies < sent / 4, f"{replies} bytes back for {sent}"
    return f"{sent // 1000} kB in {time.monotonic() - began:.1f} s, {replies} bytes back; others served in {took * 1000:.0f} ms"


def handshake_flood():
    """2,000 connections begun from 500 ports, none of which goes on."""
    first = [initial() for _ in range(2000)]
    sockets, got = [udp() for _ in range(500)], 0
    took, began = [], time.monotonic()
    for number, datagram in enumerate(first):
        try:
            sockets[number % 500].send(datagram)
        except OSError:
            pass
        if number in (500, 1999) and above <= 64:
            took.append(is_well(4))
    # Their time runs out; then all places are free, if any had been taken.
    time.sleep(max(0, began + 6 - time.monotonic()))
    for one in sockets:
        while True:
            try:
                got += len(one.recv(65536))
            except OSError:
                break
        one.close()
    sent = sum(map(len, first))
    assert got < 3 * sent, f"{got} bytes for {sent}"
    took.append(is_well())
    return f"{sent // 1000} kB, {got // 1000} kB back; others served in {max(took) * 1000:.0f} ms"


def other_protocols():
    for alpn in (("h3",), ("roomlog/2",), (), ("http/1.1", "h2")):
        for _ in range(25):
            one = Peer(alpn)
            one.until(lambda: one.end)
            assert one.end.error_code == 0x100 + 120, (alpn, one.end)
            one.socket.close()
    return "no_application_protocol, 100 times"


def silent_sessions():
    """Handshakes that are finished, and no hello: cut in 5 s, like those who say half a hello."""
    peers = [Peer() for _ in range(150)]
    for one in peers:
        one.until(lambda one=one: one.shaken)
    for one in peers[::2]:
        one.write(frame(hello("attack"))[:4])
        one.send()
    began = time.monotonic()
    while any(one.end is None for one in peers):
        assert time.monotonic() - began < 12, "still open"
        for one in peers:
            if one.end is None:
                one.step(0.002)
    codes = {one.end.error_code for one in peers}
    assert codes == {102}, codes
    return f"close 102 within {time.monotonic() - began:.1f} s"


def too_many_streams():
    """More streams than were allowed, by a stack that forgot the limit."""
    for stream in (4 * 50, 4 * 50 + 2):
        one = Peer().session()
        one.quic._remote_max_streams_bidi = one.quic._remote_max_streams_uni = 1 << 30
        one.quic._local_next_stream_id_bidi = one.quic._local_next_stream_id_uni = stream
        one.quic.send_stream_data(stream, b"x")
        one.until(lambda: one.end)
        assert one.end.error_code == 0x4, one.end
        one.socket.close()
    return "STREAM_LIMIT_ERROR"


def too_much_data():
    """Bytes beyond the window, by a stack that forgot it: on the stream, at 2^40, and just behind it."""
    for offset in (1 << 40, 600 << 10):
        one = Peer().session()
        one.quic._remote_max_data = 1 << 60
        stream = one.quic._streams[0]
        stream.max_stream_data_remote = 1 << 60
        sender = stream.sender
        one.until(lambda: sender._buffer_start == sender._buffer_stop)
        sender._buffer_start = sender._buffer_stop = offset
        one.write(b"x")
        one.until(lambda: one.end)
        assert one.end.error_code == 0x3, one.end
        one.socket.close()
    return "FLOW_CONTROL_ERROR"


def holes():
    """As much of the window as there is, in pieces with holes between them, whose front never comes."""
    peers = []
    for _ in range(40):
        one = Peer().session()
        sender = one.quic._streams[0].sender
        one.until(lambda: sender._buffer_start == sender._buffer_stop)
        start = sender._buffer_stop
        one.write(bytes(200_000))
        for at in range(start, start + 200_000, 1000):
            sender._pending.subtract(at, at + 500)
        one.until(lambda: not len(sender._pending))
        peers.append(one)
    took = is_well()
    for one in peers:
        one.close()
    return f"kept within its window; others served in {took * 1000:.0f} ms"


def unread_answers():
    """Requests without end by a peer that takes no answer: its window for them is small and is never widened."""
    one = Peer(window=4096).session()
    one.quic._write_stream_limits = lambda **_: None
    sent = request = 0
    sender = one.quic._streams[0].sender
    progress, last = time.monotonic(), 0
    while time.monotonic() - progress < 3:
        assert sent < 64 << 20, "the server goes on reading from who does not read its answers"
        if sender._buffer_stop - sender._buffer_start < 64 << 10:
            asked = b"".join(frame(pings(request + number)) for number in range(1, 5000))
            request += 5000
            sent += len(asked)
            one.write(asked)
        one.step(0.01)
        if sender._buffer_start != last:
            progress, last = time.monotonic(), sender._buffer_start
        assert not one.end, one.end
    took = is_well()
    one.close()
    return f"reads no more after {sender._buffer_start // 1024} KiB; others served in {took * 1000:.0f} ms"


ATTACKS = [
    ("one Initial, then silence", 4, amplification),
    ("Initials that are too small", 2, small_initial),
    ("an unknown version", 2, unknown_version),
    ("20,000 datagrams of noise", 8, garbage),
    ("2,000 handshakes begun and left", {1000000: 60, 64: 16, 0: 4}[above], handshake_flood),
    ("other protocols", 8, other_protocols),
    ("150 connections without a hello", 16, silent_sessions),
    ("streams beyond the limit", 2, too_many_streams),
    ("bytes beyond the window", 2, too_much_data),
    ("windows full of holes, 40 connections", 24, holes),
    ("pings of the protocol without end, answers unread", 8, unread_answers),
]


def main():
    for _ in range(3):
        is_well()
    failed = under_attack.run(ATTACKS, process, is_well, (AssertionError, OSError))
    if failed:
        raise SystemExit(f"FAILED: {failed} of {len(ATTACKS)} attacks")


main()
