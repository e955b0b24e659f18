"""Reads a registry for a scrape while requests are answered.

What collectors read belongs to the event loop, so it is read there, a family at a time. All that is made of
it may be made on any thread: 200 models with two versions each are 26,000 lines, which take 0.3 s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from prometheus_client import Metric
from prometheus_client.registry import Collector


class Collected(Collector):
    """What a registry said once.

    Args:
        families: all of it.
    """

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """The families."""
        return self._families


async def collected(source: Collector) -> Collected:
    """What a source says now; others have their turns on the event loop between its families."""
    families = []
    for family in source.collect():
        families.append(family)
        await asyncio.sleep(0)
    return Collected(families)
