"""Replicas as a pool holds them, for tests in which none need answer."""

from __future__ import annotations

from serving.backends.pool import Pool, Slot
from serving.backends.replica import Replica
from serving.backends.tfserving import TensorFlowServing, VersionStatus


def replica(address: str = "127.0.0.1:1", *, limit: float | None = None) -> Replica:
    """A replica that was reached and has version 1 of `digits`.

    Args:
        address: where its calls would go.
        limit: how many calls at once it has learned to take; None: nothing yet.
    """
    made = Replica(TensorFlowServing(address))
    made.reachable = True
    made.versions = {"digits": {1: VersionStatus("AVAILABLE")}}
    if limit is not None:
        made.room.limit = limit
    return made


def places(pool: Pool, model: str, version: int) -> int:
    """How many more batches for a version a pool takes at once: books places for them and gives them back."""
    booked: list[Slot] = []
    while (slot := pool.book(model, version)) is not None and slot.replica is not None:
        booked.append(slot)
    for slot in booked:
        slot.release()
    return len(booked)
