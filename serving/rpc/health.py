"""`grpc.health.v1`: whether requests should be sent here, by `Check` and by `Watch`.

It replaces the servicer of grpcio-health-checking, which forgets every watcher of a service when one of them
leaves: the others then never learn that this gateway shuts down, or that a model is available again. Nor does
that servicer end `Watch` calls at shutdown, although the server waits for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2

Status = health_pb2.HealthCheckResponse


class Health:
    """The status of each service; the empty name stands for the whole server."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {"": Status.NOT_SERVING}
        self._changed = asyncio.Event()
        self._ending = False

    def handler(self) -> grpc.GenericRpcHandler:
        """The handler to register with a gRPC server."""
        coding: Any = {
            "request_deserializer": health_pb2.HealthCheckRequest.FromString,
            "response_serializer": Status.SerializeToString,
        }
        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(self.check, **coding),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch, **coding),
        }
        return grpc.method_handlers_generic_handler(health.SERVICE_NAME, methods)

    def tell(self, statuses: Mapping[str, int]) -> None:
        """Replace all statuses; services that are not among them are unknown from now on."""
        if not self._ending:
            self._set(statuses)

    def end(self) -> None:
        """Set every service to NOT_SERVING for good; later calls of `tell` change nothing."""
        self._ending = True
        self._set(dict.fromkeys(self._statuses, Status.NOT_SERVING))

    def _set(self, statuses: Mapping[str, int]) -> None:
        self._statuses = dict(statuses)
        self._changed.set()
        self._changed = asyncio.Event()

    async def check(self, request: Any, call: Any) -> Any:
        """HealthCheckRequest -> HealthCheckResponse."""
        status = self._statuses.get(request.service)
        if status is None:
            text = f"there is no service, and no model, {request.service[:100]!r}"
            await call.abort(grpc.StatusCode.NOT_FOUND, text)
        return Status(status=status)

    async def watch(self, request: Any, call: Any) -> None:
        """HealthCheckRequest -> HealthCheckResponses: the status now, and again whenever it changes.

        After `end` the stream ends, with NOT_SERVING for a known service: the server waits for open calls.
        """
        told = None
        while True:
            changed, last = self._changed, self._ending
            status = self._statuses.get(request.service, Status.SERVICE_UNKNOWN)
            if status != told:
                await call.write(Status(status=status))
                told = status
            if last:
                return
            await changed.wait()
