"""The gRPC transport: bytes to messages, messages to services, errors to statuses.

A synchronous server: a call to TensorFlow releases the interpreter lock, so a bounded pool of threads
keeps every core busy. Messages are parsed on those threads, not on the one that reads the network.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from serving import protos
from serving.errors import for_a_header, without_frames
from serving.modelserver.services import Services
from serving.modelserver.status import (
    StatusError,
    failed_precondition,
    from_exception,
    invalid_argument,
)

logger = logging.getLogger(__name__)

GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}
SPARE_THREADS = 2  # to refuse calls while all others are busy
LINGER_S = 2.0  # for the last answers to reach clients, and for these to hang up

_OPTIONS: dict[str, Any] = {
    "grpc.max_receive_message_length": -1,
    "grpc.max_send_message_length": -1,
    "grpc.so_reuseport": 0,  # a second server on the same port must fail, not share it
}

Behaviour = Callable[[Any, Callable[[], bool]], Any]


@dataclass(frozen=True)
class Listening:
    """Where a server listens.

    Attributes:
        port: the TCP port; None for none.
        socket_path: the UNIX socket; empty for none.
    """

    port: int | None
    socket_path: str


class _Calls:
    """Counts the calls being worked on, at most `most` at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._changed = threading.Condition(threading.Lock())

    def begin(self) -> bool:
        """Count one more; if there is no room for it, count nothing and return False."""
        with self._changed:
            has_room = self._count < self._most
            self._count += has_room
            return has_room

    def end(self) -> None:
        """Count one less."""
        with self._changed:
            self._count -= 1
            if self._count == 0:
                self._changed.notify_all()

    def wait_for_none(self, timeout_s: float) -> bool:
        """Wait until there are none; False if there still are after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._count == 0, timeout_s)


class RpcServer:
    """The gRPC server.

    Args:
        services: what to answer.
        max_threads: the most calls worked on at once; more are refused with RESOURCE_EXHAUSTED.
        options: gRPC channel arguments; they go before our own.
    """

    def __init__(self, services: Services, max_threads: int, options: list[tuple[str, Any]]) -> None:
        self._calls = _Calls(max_threads)
        self._server = grpc.server(
            ThreadPoolExecutor(max_threads + SPARE_THREADS, thread_name_prefix="grpc"),
            options=list((_OPTIONS | dict(options)).items()),
        )
        behaviours: dict[str, dict[str, Behaviour]] = {
            protos.PREDICTION_SERVICE: {
                "Predict": _measured(services, "Predict", services.predict),
                "Classify": _measured(services, "Classify", services.classify),
                "Regress": _measured(services, "Regress", services.regress),
                "MultiInference": lambda request, _: services.multi_inference(request),
                "GetModelMetadata": lambda request, _: services.get_model_metadata(request),
            },
            protos.MODEL_SERVICE: {
                "GetModelStatus": lambda request, _: services.get_model_status(request),
                "HandleReloadConfigRequest": services.handle_reload_config,
            },
        }
        for service, by_name in behaviours.items():
            messages = protos.methods(service)
            handlers: dict[str, Any] = {
                name: grpc.unary_unary_rpc_method_handler(self._handler(messages[name][0], behaviour))
                for name, behaviour in by_name.items()
            }
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    def _handler(self, request_class: Any, behaviour: Behaviour) -> Callable[[bytes, Any], bytes]:
        def handle(serialized: bytes, context: Any) -> bytes:
            if not self._calls.begin():
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Server Threadpool Exhausted")
            try:
                request = request_class.FromString(serialized)
                response: bytes = behaviour(request, lambda: not context.is_active()).SerializeToString()
            except DecodeError:
                # The original says INTERNAL; but the fault is the client's.
                error = invalid_argument(f"The request is not a {request_class.DESCRIPTOR.full_name}")
            except StatusError as caught:
                error = without_frames(caught)
            except Exception as caught:
                logger.exception("A call failed unexpectedly")
                error = from_exception(caught)
            else:
                return response
            finally:
                self._calls.end()
            context.abort(GRPC_CODES[error.code], for_a_header(error.message))
            raise error

        return handle

    def add_health(self) -> None:
        """Answer `grpc.health.v1.Health`, too: all is well as long as this server answers."""
        servicer = health.HealthServicer()
        for name in ("", "ModelService", "PredictionService"):
            servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self._server)

    def listen(self, where: Listening, credentials: Any | None) -> int | None:
        """Bind; returns the TCP port that was bound. Raises StatusError if it cannot be."""
        port = None
        try:
            if where.port is not None:
                port = self._bind(f"0.0.0.0:{where.port}", credentials)
            if where.socket_path:
                self._bind(f"unix:{where.socket_path}", credentials)
        except RuntimeError as error:
            raise failed_precondition(f"Failed to BuildAndStart gRPC server: {error}") from error
        return port

    def _bind(self, address: str, credentials: Any | None) -> int:
        if credentials is None:
            return int(self._server.add_insecure_port(address))
        return int(self._server.add_secure_port(address, credentials))

    def start(self) -> None:
        """Start serving calls."""
        self._server.start()

    def stop(self, grace_s: float) -> bool:
        """Accept no more calls; wait at most `grace_s` for those in flight. False if some still are."""
        hung_up = self._server.stop(grace_s)
        has_none = self._calls.wait_for_none(grace_s)
        if has_none:
            # gRPC waits for its clients to hang up, which one that is suspended, or starved of CPU, does not.
            hung_up.wait(LINGER_S)
        return has_none


def _measured(services: Services, api: str, answer: Callable[[Any], Any]) -> Behaviour:
    return lambda request, _: services.measured(request.model_spec.name, api, "GRPC", lambda: answer(request))


def credentials_from(config: Any) -> Any:
    """Server credentials from an `SSLConfig` message."""
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        root_certificates=config.custom_ca.encode() or None,
        require_client_auth=config.client_verify,
    )
