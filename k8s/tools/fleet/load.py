"""Clients that classify one image after the other, and what they saw."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serving.client import AsyncClient, Retries
from serving.errors import SluiceError


@dataclass
class Seen:
    """What happened to every request.

    Attributes:
        attempts: requests that were sent, those sent again included.
        failed_attempts: kind of error -> how many attempts failed with it.
        failures: kind of error -> how many requests failed after all retries.
        answers: seconds since the start and latency in seconds, of each answer.
        versions: version -> how many answers it gave.
    """

    attempts: int = 0
    failed_attempts: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    answers: list[tuple[float, float]] = field(default_factory=list)
    versions: Counter[int] = field(default_factory=Counter)
    first_failures: list[str] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """The figures."""
        latencies = np.array([latency for _, latency in self.answers]) * 1e3
        p50, p99 = np.percentile(latencies, [50, 99]) if len(latencies) else (0.0, 0.0)
        span_s = self.answers[-1][0] if self.answers else 1.0
        failed = sum(self.failed_attempts.values())
        return {
            "requests": len(self.answers) + sum(self.failures.values()),
            "requests_per_s": round(len(self.answers) / span_s, 1),
            "failed_with_retries": dict(self.failures),
            "failed_attempts": dict(self.failed_attempts),
            "failed_attempts_percent": round(100 * failed / max(self.attempts, 1), 4),
            "p50_ms": round(float(p50), 1),
            "p99_ms": round(float(p99), 1),
            "max_ms": round(float(latencies.max(initial=0.0)), 1),
            "versions": {str(version): count for version, count in sorted(self.versions.items())},
            "examples": self.first_failures[:5],
        }


@dataclass(frozen=True, slots=True)
class CountingRetries(Retries):
    """Retries that note every attempt that failed: what a client without retries would have seen."""

    seen: Seen = field(default_factory=Seen)

    def pause_s(self, error: SluiceError, attempt: int, left_s: float) -> float | None:
        """Note the failure, then decide as usual."""
        self.seen.failed_attempts[error.kind] += 1
        self.seen.attempts += 1
        if len(self.seen.first_failures) < 5:
            self.seen.first_failures.append(error.message)
        return Retries.pause_s(self, error, attempt, left_s)


async def clients(
    url: str, count: int, image: bytes, model: str, seen: Seen, is_over: Callable[[], bool]
) -> None:
    """Run `count` clients until `is_over()`, each with connections of its own."""
    started = time.monotonic()

    async def one() -> None:
        async with AsyncClient(url, retries=CountingRetries(seen=seen)) as client:
            while not is_over():
                sent = time.monotonic()
                try:
                    prediction = await client.classify(image, model=model, top_k=1)
                except SluiceError as error:
                    seen.failures[error.kind] += 1
                    continue
                now = time.monotonic()
                seen.attempts += 1
                seen.answers.append((now - started, now - sent))
                seen.versions[prediction.version] += 1

    await asyncio.gather(*(one() for _ in range(count)))
