"""Who decides in a Kubernetes cluster: the gateway that holds a Lease."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx2
import structlog
from lightkube import Client
from lightkube.core.exceptions import ApiError
from lightkube.models.coordination_v1 import LeaseSpec
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.coordination_v1 import Lease

_log = structlog.get_logger()

LEASE = "sluice-rollout"
LEASE_S = 15
_RENEW_S = 5.0
_FAILURES = (httpx2.HTTPError, OSError)


class LeaseLeadership:
    """The gateway that holds a Lease decides (as client-go's leader election does it).

    A holder that has not renewed for the lease's duration, as measured here and not by its clock, is gone.

    Args:
        client: The API client, for the Lease's namespace.
        identity: This gateway's id.
        clock: The monotonic clock, in seconds.
    """

    def __init__(self, client: Client, identity: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._identity = identity
        self._clock = clock
        self._renewed_at: float | None = None
        self._seen: tuple[str, float] | None = None

    def held(self) -> bool:
        """See `Leadership.held`."""
        now = self._clock()
        if self._renewed_at is not None and now - self._renewed_at < _RENEW_S:
            return True
        try:
            if self._try(now):
                self._renewed_at = now
                return True
            self._renewed_at = None
        except (ApiError, *_FAILURES) as error:
            _log.warning("the lease cannot be renewed", error=str(error))
        return self._renewed_at is not None and now - self._renewed_at < LEASE_S

    def _try(self, now: float) -> bool:
        """Takes or renews the lease, if it is free or ours."""
        spec = LeaseSpec(
            holderIdentity=self._identity, leaseDurationSeconds=LEASE_S, renewTime=datetime.now(UTC)
        )
        try:
            lease = self._client.get(Lease, LEASE)
        except ApiError as error:
            if error.status.code != 404:
                raise
            return self._written(
                lambda: self._client.create(Lease(metadata=ObjectMeta(name=LEASE), spec=spec))
            )
        version = str(lease.metadata.resourceVersion)  # type: ignore[union-attr]  # the server gives metadata
        if self._seen is None or self._seen[0] != version:
            self._seen = version, now
        held_by = lease.spec.holderIdentity if lease.spec else None
        if held_by not in (None, "", self._identity) and now - self._seen[1] < LEASE_S:
            return False
        lease.spec = spec
        return self._written(lambda: self._client.replace(lease))

    @staticmethod
    def _written(write: Callable[[], Any]) -> bool:
        """Whether nobody else wrote first."""
        try:
            write()
        except ApiError as error:
            if error.status.code != 409:
                raise
            return False
        return True

    def release(self) -> None:
        """Gives the lease up, so that another need not wait for its end."""
        if self._renewed_at is None:
            return
        with contextlib.suppress(ApiError, *_FAILURES):
            lease = self._client.get(Lease, LEASE)
            if lease.spec is not None and lease.spec.holderIdentity == self._identity:
                lease.spec.holderIdentity = ""
                self._client.replace(lease)
