"""What the gateway knows about one replica: what it serves, how busy and how well it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from serving import errors
from serving.backends.breaker import Breaker
from serving.backends.tfserving import TensorFlowServing, VersionStatus

Answer = TypeVar("Answer")

Call = Callable[[TensorFlowServing, float], Awaitable[Answer]]
"""Something to do with a replica: gets its API and the seconds that are left."""

# Weight of the newest call in the moving average of latency: about the last twenty calls count.
_LATENCY_WEIGHT = 0.1

# Kinds that tell of the replica's health; every other error is the caller's or the model's.
REPLICA_FAULTS = (errors.Unavailable, errors.Internal, errors.DeadlineExceeded)


class Replica:
    """One replica, with its counters.

    Attributes:
        versions: model -> version -> status, as of the last time the replica was asked.
        reachable: whether it answered the last time it was asked.
        in_flight: calls that have not ended.
        latency_s: moving average of successful calls' duration; 0 before the first.
    """

    def __init__(self, api: TensorFlowServing) -> None:
        self.api = api
        self.address = api.address
        self.breaker = Breaker()
        self.versions: dict[str, dict[int, VersionStatus]] = {}
        self.reachable = False
        self.in_flight = 0
        self.latency_s = 0.0

    def has(self, model: str, version: int) -> bool:
        """Whether `version` of `model` is AVAILABLE here."""
        status = self.versions.get(model, {}).get(version)
        return status is not None and status.state == "AVAILABLE"

    def usable(self, model: str, version: int, now: float) -> bool:
        """Whether a call for `version` of `model` may be sent here at `now`."""
        return self.reachable and self.has(model, version) and self.breaker.allows(now)

    def forget(self, model: str, version: int) -> None:
        """The replica said that it does not have this version: do not send more until it says otherwise."""
        self.versions.get(model, {}).pop(version, None)

    async def run(self, call: Call[Answer], deadline: float, clock: Callable[[], float]) -> Answer:
        """Make a call and learn from how it goes. Cancellation leaves the counters right."""
        self.breaker.start()
        self.in_flight += 1
        started = clock()
        try:
            answer = await call(self.api, deadline - started)
        except REPLICA_FAULTS:
            self.breaker.fail(clock())
            raise
        except errors.SluiceError:
            self.breaker.succeed()
            raise
        except BaseException:
            self.breaker.abandon()
            raise
        else:
            self.breaker.succeed()
            self._learn(clock() - started)
            return answer
        finally:
            self.in_flight -= 1

    def _learn(self, latency_s: float) -> None:
        if self.latency_s == 0.0:
            self.latency_s = latency_s
        else:
            self.latency_s += _LATENCY_WEIGHT * (latency_s - self.latency_s)
