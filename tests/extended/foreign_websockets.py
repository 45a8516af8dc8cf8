"""Python's websockets against the server: foreign_websockets.py WS_PORT."""

import asyncio
import os
import sys

import websockets
from client import EARLIEST, frame, frames_of, hello, joins, pings, publishes, record, records_of

url = f"ws://127.0.0.1:{sys.argv[1]}/v1/ws"


def dial(**options):
    options.setdefault("subprotocols", ["roomlog.v1"])
    return websockets.connect(url, max_size=None, proxy=None, **options)


async def closes(code, *messages, greet=True):
    async with dial() as one:
        if greet:
            await one.send(frame(hello("websockets")))
        for message in messages:
            await one.send(message)
        try:
            while True:
                await one.recv()
        except websockets.ConnectionClosed as end:
            assert end.rcvd is not None and end.rcvd.code == code, f"{end}, and not {code}"


async def records_until_live(one):
    """What comes up to `live`: the welcome or the joined, and the records that are meant."""
    found, answers, position = [], {}, None
    while True:
        for name, fields in frames_of(await asyncio.wait_for(one.recv(), 20)):
            if name == "live":
                return answers, found
            if name == "delivery":
                assert position is None or fields["prev"] == position, fields
                found += [kept for kept in records_of(fields["body"]) if fields["at"] <= kept.offset <= fields["to"]]
                position = found[-1].offset
            else:
                answers[name] = fields


async def refused(**options):
    try:
        async with dial(**options):
            raise AssertionError(f"accepted {options}")
    except websockets.InvalidStatus as refusal:
        assert 400 <= refusal.response.status_code < 500, refusal
        return refusal.response.status_code


async def main():
    # It offers compression by default; none is agreed on.
    async with dial(subprotocols=["chat", "roomlog.v1"]) as one:
        assert one.subprotocol == "roomlog.v1", one.subprotocol
        assert not one.protocol.extensions, one.protocol.extensions
        publisher = os.urandom(16)
        await one.send(frame(hello("websockets")) + frame(joins(1, 1, "python", EARLIEST)))
        records = [os.urandom(size) for size in (0, 1, 125, 126, 65_535, 65_536, 200_000)]
        for seq, payload in enumerate(records, 1):
            await one.send(frame(publishes(seq + 1, "python", publisher, seq, [record(payload)])))
        seen, answers = [], 0
        while len(seen) < len(records) or answers < len(records):
            for name, fields in frames_of(await asyncio.wait_for(one.recv(), 20)):
                answers += name == "published"
                if name == "delivery":
                    seen += [found.payload for found in records_of(fields["body"])]
        assert seen == records
        await asyncio.wait_for(await one.ping(), 20)
        # In another session, from the beginning; and in one more by its hello, from the middle on.
        async with dial() as two:
            await two.send(frame(hello("websockets")) + frame(joins(1, 1, "python", EARLIEST)))
            answers, found = await records_until_live(two)
            assert [kept.payload for kept in found] == records
        async with dial() as three:
            await three.send(frame(hello("websockets", [(5, "python", (answers["joined"]["epoch"], found[3].offset), None)])))
            resumed, rest = await records_until_live(three)
            assert resumed["welcome"]["resumed"][0]["result"] == "joined", resumed
            assert rest == found[4:], "the rest, and nothing twice"
            await three.send(frame(publishes(1, "python", publisher, 1, [record(records[0])])))
            ((name, again),) = frames_of(await asyncio.wait_for(three.recv(), 20))
            assert name == "published" and again["duplicate"] and again["first"] == found[0].offset, again
        # In fragments, as an iterable is sent.
        whole = frame(pings(100))
        await one.send(bytes([byte]) for byte in whole)
        assert frames_of(await asyncio.wait_for(one.recv(), 20))[0][0] == "pong"
        await one.close()
        assert one.close_code == 1000, one.close_code
    await closes(1003, "text")
    await closes(1009, bytes(2_000_000))
    await closes(4600, b"\xff\xff\xff")
    await closes(4602, frame(pings(1)), greet=False)
    codes = [await refused(subprotocols=None), await refused(subprotocols=["roomlog.v2"]), await refused(origin="https://elsewhere.example")]
    assert codes[2] == 403, codes
    # Many at a time.
    async with asyncio.timeout(60):
        many = await asyncio.gather(*[dial() for _ in range(200)])
        for one in many:
            await one.send(frame(hello("many")))
        for one in many:
            assert frames_of(await one.recv())[0][0] == "welcome"
        await asyncio.gather(*[one.close() for one in many])
    print(f"websockets {websockets.__version__}: joined, published, replayed, resumed; negotiation, 7 sizes, fragments, pings, closes 1003, 1009, 4600, 4602, refusals {codes}")


asyncio.run(main())
