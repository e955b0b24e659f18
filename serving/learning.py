"""Learns about versions as replicas load them: their signatures, labels and cards.

Signatures come from GetModelMetadata, labels and the card from the `describe` signature, if a model has one.
A version without it, or with one of another kind, is served too, with indices as labels. So is, after some
attempts, one whose `describe` keeps failing; it is asked again ever less often, since a call that hangs keeps
a thread of its replica.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self, TypeVar

import structlog

from serving.backends.pool import Pool
from serving.backends.replica import Call
from serving.description import DESCRIBE_SIGNATURE, describe_request, read_card, read_labels
from serving.errors import DeadlineExceeded, FailedPrecondition, Internal, InvalidInput, SluiceError
from serving.model_version import ModelVersion, read_image_signature

_log = structlog.get_logger()

Described = TypeVar("Described")

DESCRIBE_TIMEOUT_S = 10.0
# How often `describe` may fail before a version is served without it. A replica that has only just loaded it
# may be slow once or twice.
DESCRIBE_ATTEMPTS = 3
FIRST_PAUSE_S = 1.0  # after those attempts; it doubles with each failure
LONGEST_PAUSE_S = 300.0


class VersionName(NamedTuple):
    """A model's name and the number of one of its versions."""

    model: str
    number: int


@dataclass(slots=True)
class _Attempts:
    """What became of the attempts to learn about one version.

    Attributes:
        undescribed: how often `describe` has failed in a row.
        again_at: when to try again, on the monotonic clock.
        told: what has been logged about them last.
    """

    undescribed: int = 0
    again_at: float = 0.0
    told: str = ""


class Learner:
    """Learns about versions, each in a task of its own. Use as an async context manager.

    Args:
        pool: the replicas.
        learned: called with each version as it becomes known, and again when more is known of it.
        clock: the monotonic clock, in seconds.
    """

    def __init__(
        self, pool: Pool, learned: Callable[[ModelVersion], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool = pool
        self._learned = learned
        self._clock = clock
        self._attempts: dict[VersionName, _Attempts] = {}
        self._running: dict[VersionName, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def learn(self, unknown: Collection[VersionName], patience_s: float) -> None:
        """Learn about these versions; what is remembered of attempts at others is forgotten.

        Args:
            unknown: all such versions that are available. Those that are being asked about already, or that
                failed too often and recently, are left alone.
            patience_s: how long to wait for what begins now; it then goes on in the background.
        """
        self._attempts = {version: self._attempts.get(version, _Attempts()) for version in unknown}
        begun = []
        for version, attempts in self._attempts.items():
            if version not in self._running and self._clock() >= attempts.again_at:
                task = asyncio.create_task(self._try(version, attempts))
                self._running[version] = task
                begun.append(task)
        if begun:
            await asyncio.wait(begun, timeout=patience_s)

    async def _try(self, version: VersionName, attempts: _Attempts) -> None:
        """Learn about one version; whatever is wrong with it does not affect the others."""
        try:
            await self._describe(version, attempts)
        except Exception as error:  # a later round tries again
            text = error.message if isinstance(error, SluiceError) else repr(error)
            if attempts.told != text:
                attempts.told = text
                _log.warning(
                    "cannot learn about a version", model=version.model, version=version.number, error=text
                )
        finally:
            del self._running[version]

    async def _describe(self, version: VersionName, attempts: _Attempts) -> None:
        deadline = self._clock() + DESCRIBE_TIMEOUT_S
        signatures = await self._ask(
            version, lambda api, timeout_s: api.signatures(*version, timeout_s), deadline
        )
        image = read_image_signature(signatures)
        indices = tuple(map(str, range(image.classes if image else 0)))
        found = ModelVersion(*version, signatures, image, labels=indices)
        if DESCRIBE_SIGNATURE in signatures:
            try:
                found = await self._described(version, found, deadline)
            except (Internal, DeadlineExceeded):
                self._put_off(attempts, found)
                raise
        self._learned(found)

    async def _described(self, version: VersionName, found: ModelVersion, deadline: float) -> ModelVersion:
        """The version as it was found, with the card and the labels that its `describe` gives."""
        nothing: Mapping[str, Any] = {}
        card = await self._output(version, "card", range(1), read_card, nothing, deadline)
        labels = found.labels
        if found.image is not None:
            count = found.image.classes
            labels = await self._output(
                version, "label", range(count), lambda answer: read_labels(answer, count), labels, deadline
            )
        return replace(found, card=card, labels=labels)

    async def _output(
        self,
        version: VersionName,
        output: str,
        indices: range,
        read: Callable[[Any], Described],
        otherwise: Described,
        deadline: float,
    ) -> Described:
        """One output of a version's `describe`; `otherwise` if that gives something else."""
        request = describe_request(*version, indices, output)
        try:
            return read(
                await self._ask(version, lambda api, timeout_s: api.predict(request, timeout_s), deadline)
            )
        except (InvalidInput, FailedPrecondition) as error:
            _log.warning(
                f"a version's signature {DESCRIBE_SIGNATURE} gives no {output}",
                model=version.model,
                version=version.number,
                error=error.message,
            )
            return otherwise

    async def _ask(self, version: VersionName, what: Call[Any], deadline: float) -> Any:
        return await self._pool.call(*version, what, deadline=deadline)

    def _put_off(self, attempts: _Attempts, found: ModelVersion) -> None:
        """Note that `describe` failed: after some failures the version is served without it."""
        attempts.undescribed += 1
        more = attempts.undescribed - DESCRIBE_ATTEMPTS
        if more >= 0:
            self._learned(replace(found, described=False))
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(more, 16))
            attempts.again_at = self._clock() + pause_s
