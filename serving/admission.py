"""Whether there is room for a request: counted in requests and in bytes, decided at once.

A refusal must stay cheap while the house is full, so nothing here waits, and nothing is read or decoded
before a request is admitted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import Overloaded
from serving.telemetry import Metrics

# Long enough for a queue of requests to empty, short enough that capacity is not left idle.
RETRY_AFTER_S = 1.0


class Ticket:
    """The room that one admitted request takes: itself, and the bytes of its body as they come in."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.held_bytes = 0

    def hold(self, size_bytes: int) -> None:
        """Take room for `size_bytes` more of the body; raises Overloaded if there is none."""
        self._admission.take_bytes(size_bytes)
        self.held_bytes += size_bytes


class Admission:
    """The room of one gateway.

    Args:
        max_in_flight: requests admitted at once.
        max_in_flight_bytes: bytes of bodies held at once.
        metrics: where refusals and requests in flight are counted.
    """

    def __init__(self, *, max_in_flight: int, max_in_flight_bytes: int, metrics: Metrics) -> None:
        self._max_in_flight = max_in_flight
        self._max_in_flight_bytes = max_in_flight_bytes
        self._metrics = metrics
        self._bytes = 0
        self.in_flight = 0

    @contextmanager
    def admit(self) -> Iterator[Ticket]:
        """Room for one request while the block runs.

        Raises:
            Overloaded: too many requests are in flight.
        """
        if self.in_flight >= self._max_in_flight:
            self._metrics.refused.labels("requests").inc()
            raise Overloaded(
                f"{self.in_flight} requests are in flight, which is the limit",
                stage="admission",
                retry_after_s=RETRY_AFTER_S,
            )
        ticket = Ticket(self)
        self.in_flight += 1
        self._metrics.in_flight.inc()
        try:
            yield ticket
        finally:
            self.in_flight -= 1
            self._metrics.in_flight.dec()
            self._bytes -= ticket.held_bytes

    def take_bytes(self, size_bytes: int) -> None:
        """Take room for bytes of a body; the ticket of the request gives it back."""
        if self._bytes + size_bytes > self._max_in_flight_bytes:
            self._metrics.refused.labels("bytes").inc()
            raise Overloaded(
                f"{self._bytes} bytes of requests are held and the limit is {self._max_in_flight_bytes}",
                stage="admission",
                retry_after_s=RETRY_AFTER_S,
            )
        self._bytes += size_bytes
