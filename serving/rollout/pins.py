"""The versions that serve models without a rollout."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

from serving.catalog import Catalog
from serving.errors import SluiceError
from serving.rollout.store import Store


class Pins:
    """Reads the pins, in a thread: hundreds of models have as many files. A model is pinned when first seen.

    Args:
        store: Where the pins are.
        catalog: What replicas hold, for models whose published versions cannot be seen.

    Attributes:
        versions: What serves each model, as of the last look; without those of which that is unknown.
    """

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self.versions: Mapping[str, int] = {}
        self._store = store
        self._catalog = catalog

    async def look(self, models: Sequence[str], frozen: Collection[str]) -> list[Exception]:
        """Reads the pins of models, anew; returns the failures, each of one model.

        Args:
            models: Those without a rollout.
            frozen: Models with a record that cannot be read. They are not pinned: it may say something else.
        """
        held = {model: list(self._catalog.versions(model)) for model in models if model not in self.versions}
        self.versions, failures = await asyncio.to_thread(self._read, models, frozen, held)
        return failures

    def _read(
        self, models: Sequence[str], frozen: Collection[str], held: Mapping[str, Sequence[int]]
    ) -> tuple[dict[str, int], list[Exception]]:
        versions: dict[str, int] = {}
        failures: list[Exception] = []
        for model in models:
            try:
                pinned = self._store.pinned(model)
                if pinned is None and model not in frozen:
                    pinned = self._pin(model, held.get(model, ()))
            except (SluiceError, OSError) as error:
                failures.append(error)
                continue
            if pinned is not None:
                versions[model] = pinned
        return versions, failures

    def _pin(self, model: str, held: Sequence[int]) -> int | None:
        """Pins the newest version; returns it, None if there is none yet."""
        newest = max(self._store.published(model) or held, default=None)
        if newest is not None:
            self._store.pin(model, newest)
        return newest
