"""An HTTP client in a process of its own that asks at a rate, whatever becomes of it, and costs little.

`python -m tests.chaos.flood` with what to do as JSON; prints what was seen as JSON. Requests are spread over
time as the rate says and each takes a connection that is free, or a new one: unlike clients that wait for an
answer before they ask again, it does not slow down when its server does (an open loop). With a rate of 0 it
is a closed loop over `connections`.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

import numpy as np
import uvloop

_TICK_S = 0.001
_MOST_CONNECTIONS = 4000
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
# How long answers are waited for after the last request.
_GRACE_S = 10.0


class Flood(NamedTuple):
    """What to do: `rate` requests a second for `seconds` with the body in the file `body`, and an API key."""

    url: str
    body: str
    rate: float
    seconds: float
    deadline_s: float
    connections: int = 0
    key: str = ""


class Seen(NamedTuple):
    """What was seen.

    Attributes:
        sent: requests.
        unsent: those that were to be sent while every connection was taken.
        statuses: answers by status; `0` for connections that broke.
        latency_s: by status, the latencies' median and 99th percentile, in seconds.
        late: answers with 200 that came behind the deadline.
        per_s: answers with 200 a second, while requests were sent.
        cpu_share: processor time of this client, as a share of one core.
    """

    sent: int
    unsent: int
    statuses: dict[str, int]
    latency_s: dict[str, tuple[float, float]]
    late: int
    per_s: float
    cpu_share: float


class _Connection(asyncio.Protocol):
    """One connection, with at most one request on its way."""

    def __init__(self, client: _Client) -> None:
        self._client = client
        self._buffer = b""
        self._end = 0
        self.sent_at = 0.0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def ask(self) -> None:
        self.sent_at = time.perf_counter()
        self.transport.write(self._client.request)

    def data_received(self, data: bytes) -> None:
        self._buffer = data if not self._buffer else self._buffer + data
        if not self._end:
            head = self._buffer.find(b"\r\n\r\n")
            if head < 0:
                return
            found = _LENGTH.search(self._buffer, 0, head)
            self._end = head + 4 + (int(found[1]) if found else 0)
        if len(self._buffer) >= self._end:
            status, self._buffer, self._end = int(self._buffer[9:12]), b"", 0
            self._client.answered(self, status)

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.lost(self)


class _Client:
    def __init__(self, flood: Flood, body: bytes) -> None:
        host_and_port = flood.url.split("/")[2]
        self._address = host_and_port.split(":")
        path = "/" + "/".join(flood.url.split("/")[3:])
        head = f"POST {path} HTTP/1.1\r\nhost: {host_and_port}\r\ncontent-type: image/jpeg\r\n"
        head += f"x-api-key: {flood.key}\r\n" if flood.key else ""
        head += f"x-request-timeout: {flood.deadline_s}\r\ncontent-length: {len(body)}\r\n\r\n"
        self.request = head.encode() + body
        self._flood = flood
        self._free: deque[_Connection] = deque()
        self._busy: set[_Connection] = set()
        self._opening = 0
        self.latencies: dict[int, list[float]] = {}
        self.sent = 0
        self.unsent = 0
        self.answered_per_s = 0.0
        self.asking = True

    async def open(self) -> None:
        """Open a connection and ask on it."""
        self._opening += 1
        try:
            loop = asyncio.get_running_loop()
            _, made = await loop.create_connection(
                lambda: _Connection(self), self._address[0], int(self._address[1])
            )
        except OSError:
            self.latencies.setdefault(0, []).append(0.0)
        else:
            self._ask(made)
        finally:
            self._opening -= 1

    def _ask(self, connection: _Connection) -> None:
        self._busy.add(connection)
        self.sent += 1
        connection.ask()

    def answered(self, connection: _Connection, status: int) -> None:
        self.latencies.setdefault(status, []).append(time.perf_counter() - connection.sent_at)
        self._busy.discard(connection)
        if self._flood.rate == 0 and self.asking:
            self._ask(connection)
        else:
            self._free.append(connection)

    def lost(self, connection: _Connection) -> None:
        if connection in self._busy:
            self._busy.discard(connection)
            self.latencies.setdefault(0, []).append(time.perf_counter() - connection.sent_at)
        elif connection in self._free:
            self._free.remove(connection)

    async def run(self) -> float:
        """Ask as long as it should, and wait for the answers; how long it asked."""
        started = time.perf_counter()
        if self._flood.rate == 0:
            await asyncio.gather(*(self.open() for _ in range(self._flood.connections)))
            await asyncio.sleep(self._flood.seconds)
        else:
            await self._at_rate(started)
        took_s = time.perf_counter() - started
        self.answered_per_s = len(self.latencies.get(200, ())) / took_s
        self.asking = False
        async with asyncio.timeout(_GRACE_S):
            while self._busy or self._opening:
                await asyncio.sleep(0.01)
        return took_s

    async def _at_rate(self, started: float) -> None:
        due, opening = 0, set()
        while (elapsed_s := time.perf_counter() - started) < self._flood.seconds:
            while due < elapsed_s * self._flood.rate:
                due += 1
                if self._free:
                    self._ask(self._free.pop())
                elif len(self._busy) + self._opening < _MOST_CONNECTIONS:
                    task = asyncio.ensure_future(self.open())
                    opening.add(task)
                    task.add_done_callback(opening.discard)
                else:
                    self.unsent += 1
            await asyncio.sleep(_TICK_S)


async def _flood(flood: Flood, body: bytes) -> Seen:
    client = _Client(flood, body)
    took_s = await client.run()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    quantiles = {
        str(status): (float(np.quantile(found, 0.5)), float(np.quantile(found, 0.99)))
        for status, found in client.latencies.items()
    }
    return Seen(
        sent=client.sent,
        unsent=client.unsent,
        statuses={str(status): len(found) for status, found in client.latencies.items()},
        latency_s=quantiles,
        late=sum(each > flood.deadline_s for each in client.latencies.get(200, ())),
        per_s=client.answered_per_s,
        cpu_share=(usage.ru_utime + usage.ru_stime) / took_s,
    )


async def flood(about: Flood) -> Seen:
    """Run it in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.chaos.flood", json.dumps(about), stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    return Seen(*json.loads(output))


def main() -> None:
    """What this process is for."""
    about = Flood(*json.loads(sys.argv[1]))
    print(json.dumps(uvloop.run(_flood(about, Path(about.body).read_bytes()))))


if __name__ == "__main__":
    main()
