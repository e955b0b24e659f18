"""How the workers of one gateway ask each other, so that each can speak for all.

A connection reaches any one of them. Prometheus and the page must see the whole gateway there, so each worker
answers its peers' questions on a unix socket, in a folder that only their user may enter.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

from serving.telemetry.scrape import collected

_SUFFIX = ".peer"
# A worker that does not answer within this is left out: it may be starting, or hang.
TIMEOUT_S = 2.0

Answer = Callable[[], Any]
"""Returns a value that JSON can represent, or an awaitable of one."""


class Peers:
    """The workers of one gateway, as one of them sees them.

    Args:
        folder: where their sockets are; of this user alone.
        name: this worker's own name, such as `0`.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self.name = name

    @asynccontextmanager
    async def answering(self, answers: Mapping[str, Answer]) -> AsyncIterator[None]:
        """Answer questions while the block runs.

        Args:
            answers: by question.
        """

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            question = (await reader.readline()).decode().strip()
            if question in answers:
                found = answers[question]()
                if inspect.isawaitable(found):
                    found = await found
                writer.write(await asyncio.to_thread(_dumped, found))
            writer.close()

        path = self._folder / f"{self.name}{_SUFFIX}"
        server = await asyncio.start_unix_server(answer, path)  # in the place of one that was killed
        try:
            yield
        finally:
            server.close()
            path.unlink(missing_ok=True)

    async def ask(self, question: str) -> dict[str, Any]:
        """What each of the others answers, by name; those that do not are left out."""
        paths = sorted(path for path in self._folder.glob(f"*{_SUFFIX}") if path.stem != self.name)
        answers = await asyncio.gather(*(_ask(path, question) for path in paths))
        return {path.stem: found for path, found in zip(paths, answers, strict=True) if found is not None}

    async def metrics(self, own: CollectorRegistry) -> Merged:
        """The metrics of all workers: this one's, which are in `own`, and the others'."""
        others = await self.ask("metrics")
        return Merged({self.name: await samples(own), **others})


async def _ask(path: Path, question: str) -> Any:
    with suppress(OSError, TimeoutError, ValueError):
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(f"{question}\n".encode())
                return await asyncio.to_thread(json.loads, await reader.read())
            finally:
                writer.close()
    return None


def _dumped(answer: Any) -> bytes:
    return json.dumps(answer).encode()


async def samples(source: Collector) -> list[Any]:
    """Every metric family of a registry, as values that JSON can represent."""
    found = await collected(source)
    return await asyncio.to_thread(
        lambda: [
            [each.name, each.documentation, each.type, [list(sample[:5]) for sample in each.samples]]
            for each in found.collect()
        ]
    )


class Merged(Collector):
    """The metrics of all workers, for prometheus_client's encoders: each series has a label `worker`.

    They are not added up: a restarted worker counts from zero, which Prometheus understands in a series, but
    not in a sum.

    Args:
        found: what `samples` gave, by the worker's name.
    """

    def __init__(self, found: Mapping[str, Iterable[Any]]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        """Every family, with the samples of all."""
        families: dict[str, Metric] = {}
        for worker, each in self._found.items():
            for name, documentation, kind, found in each:
                family = families.setdefault(name, Metric(name, documentation, kind))
                family.samples.extend(_sample(worker, sample) for sample in found)
        return families.values()


def _sample(worker: str, found: list[Any]) -> Sample:
    name, labels, value, timestamp, exemplar = found
    return Sample(
        name, {**labels, "worker": worker}, value, timestamp, Exemplar(*exemplar) if exemplar else None
    )
