"""The small cluster around the fleet: DNS, readiness, a Service's address."""

from __future__ import annotations

import asyncio
import random
import struct

from k8s.tools.fleet.cluster import Endpoints, ServiceAddress, answer
from k8s.tools.fleet.load import CountingRetries, Seen
from serving.errors import InvalidInput, Unavailable


def question(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return (
        b"\xab\xcd" + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)
    )


def test_dns_answers_with_the_addresses_that_are_ready() -> None:
    asked = question("model-servers", 1)
    given = answer(asked, "model-servers", ["10.99.0.21", "10.99.0.22"])
    assert given[:2] == asked[:2]
    flags, questions, answers = struct.unpack_from("!HHH", given, 2)
    assert (flags & 0x8000, flags & 0xF, questions, answers) == (0x8000, 0, 1, 2)
    assert given[12 : len(asked)] == asked[12:]
    assert given.endswith(bytes([0, 4, 10, 99, 0, 22]))
    assert len(given) == len(asked) + 2 * 16


def test_dns_knows_one_name_and_one_kind_of_address() -> None:
    no_address = answer(question("model-servers", 28), "model-servers", ["10.99.0.21"])
    assert struct.unpack_from("!HHH", no_address, 2)[::2] == (0x8580, 0)
    unknown = answer(question("other.example", 1), "model-servers", ["10.99.0.21"])
    assert struct.unpack_from("!HHH", unknown, 2)[::2] == (0x8583, 0)


async def test_connections_go_to_pods_that_are_ready_until_they_end() -> None:
    async def pod(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            if line.startswith(b"GET"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(pod, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    endpoints = Endpoints(["127.0.0.1"], port, "/readyz")
    service = await asyncio.start_server(ServiceAddress(endpoints, random.Random(1)).serve, "127.0.0.1", 0)
    address = service.sockets[0].getsockname()[:2]
    watching = asyncio.create_task(endpoints.watch())
    try:
        await asyncio.wait_for(endpoints.all_ready(1), 20)
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        endpoints.terminate("127.0.0.1")
        writer.write(b"GET / HTTP/1.1\r\n")  # what is there stays there
        await reader.readline()
        await reader.readline()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        other, other_writer = await asyncio.open_connection(*address)
        assert await other.read() == b""  # and new ones find nobody
        writer.close()
        other_writer.close()
    finally:
        watching.cancel()
        server.close()
        service.close()


def test_failed_attempts_are_counted_whether_they_are_made_again_or_not() -> None:
    seen = Seen()
    retries = CountingRetries(seen=seen)
    assert retries.pause_s(Unavailable("gone"), 1, 10.0) is not None
    assert retries.pause_s(InvalidInput("never"), 1, 10.0) is None
    assert (seen.attempts, dict(seen.failed_attempts)) == (2, {"unavailable": 1, "invalid-input": 1})
    assert seen.report()["failed_attempts_percent"] == 100.0
