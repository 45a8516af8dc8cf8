"""aioquic against the server: foreign_aioquic.py QUIC_PORT CERTIFICATE."""

import asyncio
import os
import sys

import aioquic
from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted, StreamDataReceived, StreamReset
from client import EARLIEST, Broken, Reader, frame, frames_of, hello, joins, leaves, pings, publishes, record, records_of

port, certificate = int(sys.argv[1]), sys.argv[2]


class Peer(QuicConnectionProtocol):
    def __init__(self, *rest, **options):
        super().__init__(*rest, **options)
        self.streams, self.ended, self.alpn, self.news = {}, set(), None, asyncio.Event()
        self.termination = None

    def quic_event_received(self, event):
        if isinstance(event, HandshakeCompleted):
            self.alpn = event.alpn_protocol
        elif isinstance(event, StreamDataReceived):
            self.streams[event.stream_id] = self.streams.get(event.stream_id, b"") + event.data
            if event.end_stream:
                self.ended.add(event.stream_id)
        elif isinstance(event, StreamReset):
            self.ended.add(event.stream_id)
        elif isinstance(event, ConnectionTerminated):
            self.termination = event
        self.news.set()

    def write(self, message):
        self._quic.send_stream_data(0, message)
        self.transmit()

    async def until(self, condition):
        async with asyncio.timeout(20):
            while not (found := condition()):
                self.news.clear()
                await self.news.wait()
            return found

    def frames(self, stream, head=False):
        """The whole frames of a stream so far, and its head."""
        text = self.streams.get(stream, b"")
        reader, found, start = Reader(text), [], None
        try:
            if head:
                start = (reader.u32(), reader.string(), reader.u64())
            while reader.left():
                at = reader.at
                reader.take(reader.u32())
                found += frames_of(text[at : reader.at])
        except Broken as cut:
            if "cut" not in str(cut):
                raise
        return (start, found) if head else found


def dial(alpn, **options):
    configuration = QuicConfiguration(is_client=True, alpn_protocols=alpn, server_name="localhost")
    configuration.load_verify_locations(certificate)
    for name, value in options.items():
        setattr(configuration, name, value)
    return connect("127.0.0.1", port, configuration=configuration, create_protocol=Peer)


async def main():
    async with dial(["h3", "roomlog/1"]) as one:
        assert one.alpn == "roomlog/1", one.alpn
        publisher = os.urandom(16)
        one.write(frame(hello("aioquic")) + frame(joins(1, 7, "quic", EARLIEST)) + frame(joins(2, 8, "quic", EARLIEST)))
        records = [os.urandom(size) for size in (0, 1, 1200, 65_536, 250_000)] + [os.urandom(1000) for _ in range(1000)]
        for seq, payload in enumerate(records, 3):
            one.write(frame(publishes(seq, "quic", publisher, seq - 2, [record(payload)])))
            if seq % 50 == 0:
                await one.until(lambda: sum(name == "published" for name, _ in one.frames(0)) >= seq - 20)
        await one.until(lambda: sum(name == "published" for name, _ in one.frames(0)) == len(records))

        def payloads(stream):
            start, found = one.frames(stream, head=True)
            assert start is None or start[1] == "quic" and {fields["join"] for _, fields in found} <= {start[0]}, start
            return [kept.payload for name, fields in found if name == "delivery" for kept in records_of(fields["body"])]

        def rooms():
            return [stream for stream in one.streams if stream % 4 == 3]

        await one.until(lambda: len(rooms()) == 2 and all(len(payloads(stream)) == len(records) for stream in rooms()))
        for stream in rooms():
            assert payloads(stream) == records, "a room's stream is in order, and nothing is lost"
        assert {one.frames(stream, head=True)[0][0] for stream in rooms()} == {7, 8}
        kinds = {name for name, _ in one.frames(0)}
        assert kinds == {"welcome", "joined", "published"}, kinds
        one.write(frame(leaves(5000, 7)))
        left = next(stream for stream in rooms() if one.frames(stream, head=True)[0][0] == 7)
        await one.until(lambda: left in one.ended)
        ((_, _, epoch), pushed) = one.frames(rooms()[0], head=True)
        stored = [kept for name, fields in pushed if name == "delivery" for kept in records_of(fields["body"])]
    # In another connection from the beginning, and from the middle on by a hello.
    for greeting, expected in ((frame(hello("aioquic")) + frame(joins(1, 3, "quic", EARLIEST)), stored),
                               (frame(hello("aioquic", [(3, "quic", (epoch, stored[500].offset), None)])), stored[501:])):
        async with dial(["roomlog/1"]) as one:
            one.write(greeting)
            await one.until(lambda: 3 in one.streams and any(name == "live" for name, _ in one.frames(3, head=True)[1]))
            found, position = [], None
            for name, fields in one.frames(3, head=True)[1]:
                if name == "delivery":
                    assert position is None or fields["prev"] == position, fields
                    found += [kept for kept in records_of(fields["body"]) if fields["at"] <= kept.offset <= fields["to"]]
                    position = found[-1].offset
            assert found == expected, f"{len(found)} records and not {len(expected)}"
            one.write(frame(publishes(9, "quic", publisher, 1, [record(records[0])])))
            await one.until(lambda: one.frames(0)[-1][0] == "published")
            again = one.frames(0)[-1][1]
            assert again["duplicate"] and again["first"] == stored[0].offset, again
    for alpn in (["h3"], ["roomlog/2"], None):
        try:
            async with asyncio.timeout(10):
                async with dial(alpn) as one:
                    await one.ping()
            raise AssertionError(f"{alpn} was accepted")
        except ConnectionError:
            pass
    # A stream too many ends the session.
    for unidirectional in (False, True):
        async with dial(["roomlog/1"]) as one:
            one.write(frame(hello("aioquic")))
            await one.until(lambda: one.frames(0))
            other = one._quic.get_next_available_stream_id(is_unidirectional=unidirectional)
            one._quic.send_stream_data(other, frame(pings(1)))
            one.transmit()
            await one.until(lambda: one.termination)
            assert one.termination.error_code == 600, one.termination
    # A session that ends: the application's code.
    async with dial(["roomlog/1"]) as one:
        one.write(frame(pings(1)))
        await one.until(lambda: one.termination)
        assert one.termination.error_code == 602, one.termination
        goodbye = one.frames(0)
        assert [name for name, _ in goodbye] == ["goodbye"] and goodbye[0][1]["code"] == 102, goodbye
    print(f"aioquic {aioquic.__version__}: joined, published, replayed, resumed; ALPN roomlog/1, two room streams of {len(records)} records, h3 and others refused, closes 600 and 602")


asyncio.run(main())
