"""A bad road between clients and a server, for TCP and UDP: proxy.py PORT HOST TCP_PORT UDP_PORT HOW.

PORT of loopback leads to both ports of HOST. HOW is one of

  delay     everything comes 20 to 200 ms late, in each direction. TCP in pieces of any size, in order; datagrams each
            with a delay of its own, so that they overtake each other, and one in ten twice
  resets    a TCP connection ends within 3 s: for up to 300 ms what the server says is swallowed, what the client says
            still arrives, and then both are reset. Datagrams come from another port every few seconds, as behind a NAT
            that forgets

Ended by SIGTERM, it prints what it did, as `NAME COUNT` lines.
"""

import asyncio
import collections
import random
import signal
import socket
import struct
import sys

port, host, tcp_port, udp_port, how = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
counts = collections.Counter()
if how not in ("delay", "resets"):
    raise SystemExit(__doc__)


def late():
    return random.uniform(0.02, 0.2) if how == "delay" else 0


async def pump(reader, writer, swallows):
    """Passes on what comes, each piece not before its time, and none before the one that came before it."""
    pieces = asyncio.Queue(64)
    loop = asyncio.get_running_loop()

    async def write():
        while True:
            due, piece = await pieces.get()
            await asyncio.sleep(max(0, due - loop.time()))
            if piece is None:
                writer.write_eof()
                return
            if swallows.is_set():
                counts["swallowed_bytes"] += len(piece)
                continue
            writer.write(piece)
            await writer.drain()

    async def read():
        while piece := await reader.read(random.choice((1, 7, 100, 1500, 20_000))):
            counts["tcp_pieces"] += 1
            await pieces.put((loop.time() + late(), piece))
        await pieces.put((loop.time() + late(), None))

    await asyncio.gather(read(), write())


def reset(writer):
    if writer.transport.get_extra_info("socket").fileno() < 0:
        return
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def tcp(reader, writer):
    counts["tcp_connections"] += 1
    try:
        up_reader, up_writer = await asyncio.open_connection(host, tcp_port)
    except OSError:
        return reset(writer)
    swallows, never = asyncio.Event(), asyncio.Event()
    pumps = asyncio.gather(pump(reader, up_writer, never), pump(up_reader, writer, swallows))
    try:
        if how == "resets":
            await asyncio.wait([pumps], timeout=random.uniform(0.2, 3))
            swallows.set()
            await asyncio.wait([pumps], timeout=random.uniform(0, 0.3))
            if not pumps.done():
                counts["resets"] += 1
                pumps.cancel()
        await pumps
    except (OSError, asyncio.CancelledError):
        pass
    finally:
        reset(writer)
        reset(up_writer)


class Upstream(asyncio.DatagramProtocol):
    """What stands towards the server for one client."""

    def __init__(self, road, client):
        self.road, self.client, self.newest = road, client, 0

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, datagram, _):
        self.road.later(lambda: self.road.transport.sendto(datagram, self.client))

    def error_received(self, _):
        pass


class Road(asyncio.DatagramProtocol):
    def __init__(self):
        self.upstreams, self.sent, self.arrived = {}, 0, 0
        self.waiting = {}

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, datagram, client):
        if client not in self.waiting:
            self.waiting[client] = []
            asyncio.get_running_loop().create_task(self.open(client))
        if client in self.upstreams:
            self.later(lambda: self.upstreams[client].transport.sendto(datagram))
        else:
            self.waiting[client].append(datagram)

    async def open(self, client):
        while True:
            loop = asyncio.get_running_loop()
            _, upstream = await loop.create_datagram_endpoint(lambda: Upstream(self, client), remote_addr=(host, udp_port))
            if client in self.upstreams:
                counts["rebindings"] += 1
                self.upstreams[client].transport.close()
            self.upstreams[client] = upstream
            for datagram in self.waiting[client]:
                upstream.transport.sendto(datagram)
            self.waiting[client] = []
            if how != "resets":
                return
            await asyncio.sleep(random.uniform(1, 5))

    def later(self, send):
        counts["datagrams"] += 1
        copies = 2 if how == "delay" and random.random() < 0.1 else 1
        counts["datagrams_doubled"] += copies - 1
        for _ in range(copies):
            self.sent += 1
            asyncio.get_running_loop().call_later(late(), self.arrive, self.sent, send)

    def arrive(self, number, send):
        if number < self.arrived:
            counts["datagrams_overtaken"] += 1
        self.arrived = max(self.arrived, number)
        send()


async def main():
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    server = await asyncio.start_server(tcp, "127.0.0.1", port)
    await loop.create_datagram_endpoint(Road, local_addr=("127.0.0.1", port))
    print("listens", flush=True)
    await ended.wait()
    server.close()
    for name, count in sorted(counts.items()):
        print(name, count, flush=True)


asyncio.run(main())
