"""The gRPC server: services, health and reflection on one port."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serving import ports, protos
from serving.certificates import Certificates
from serving.errors import InvalidInput
from serving.gateway import Gateway
from serving.rpc.classification import ImageClassification
from serving.rpc.memory_gate import MemoryGate
from serving.rpc.openinference import OpenInferenceRpc
from serving.rpc.rollouts import RolloutsRpc
from serving.rpc.tfserving import TensorFlowServingRpc

SERVICES = (
    protos.IMAGE_CLASSIFICATION,
    protos.ROLLOUTS,
    protos.PREDICTION_SERVICE,
    protos.MODEL_SERVICE,
    protos.OPEN_INFERENCE,
)

# Room for the message around the images.
_OVERHEAD_BYTES = 2**20
# Proxies and phones ping every ten seconds or more. gRPC's default, five minutes, ends the connection of such
# a client, with all its calls, at its third ping while it waits for an answer.
_PING_INTERVAL_MS = 5_000
# gRPC's largest number of milliseconds, 25 days, which it takes for no limit.
_FOR_EVER = 2**31 - 1
# A full batch of small images is here before it is asked for.
_UNREAD_BYTES = 256 * 2**10


class RpcServer:
    """The gRPC API over `gateway`.

    Args:
        gateway: what answers.
        host: the address to listen on.
        port: the port; 0 takes any free one.
        shared: whether other processes may listen on it, too.
        certificates: for TLS; None: none.

    Raises:
        InvalidInput: the port is taken, or the host is none of this machine's.
    """

    def __init__(
        self,
        gateway: Gateway,
        host: str,
        port: int,
        *,
        shared: bool = False,
        certificates: Certificates | None = None,
    ) -> None:
        self._gateway = gateway
        limit = gateway.settings.max_body_bytes + _OVERHEAD_BYTES
        options: tuple[tuple[str, int], ...] = (
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", int(shared)),  # else two servers on one port are an error, not a lottery
            # gRPC tells clients by GOAWAY, a tenth sooner or later, and lets calls end (proposal A9).
            ("grpc.max_connection_age_ms", min(round(gateway.settings.connection_age_s * 1000), _FOR_EVER)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", _PING_INTERVAL_MS),
        )
        if gateway.pressure is not None:
            # Else gRPC takes up to 4 MB of each message that is not read yet. One that is read comes as fast:
            # for that the window is opened as wide as the message is large.
            options = (
                *options,
                ("grpc.http2.bdp_probe", 0),
                ("grpc.http2.lookahead_bytes", _UNREAD_BYTES),
            )
        gates = () if gateway.pressure is None else (MemoryGate(gateway, gateway.pressure),)
        self._server = grpc.aio.server(interceptors=gates, options=options)
        self._server.add_generic_rpc_handlers(
            (
                ImageClassification(gateway).handler(),
                OpenInferenceRpc(gateway).handler(),
                RolloutsRpc(gateway).handler(),
                *TensorFlowServingRpc(gateway).handlers(),
            )
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        _enable_reflection(self._server)
        try:
            ports.check(host, port, shared=shared)
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            self.port = (
                self._server.add_insecure_port(address)
                if certificates is None
                else self._server.add_secure_port(address, certificates.for_grpc())
            )
        except OSError as error:
            raise ports.refusal("gRPC", host, port, error) from error
        except RuntimeError as error:
            raise InvalidInput(
                f"cannot listen on {host}:{port} for gRPC, though it was free just now; its log says why"
            ) from error

    async def start(self) -> None:
        """Start to accept."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Tell clients to go elsewhere, finish what is in flight within `grace_s` seconds, stop."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    async def report_health(self, interval_s: float) -> None:
        """Keep `grpc.health.v1` up to date, for ever.

        Services are SERVING while requests should be sent here, and each model, by its name, for itself.
        """
        status = health_pb2.HealthCheckResponse
        told: dict[str, int] = {}
        while True:
            catalog = self._gateway.catalog
            missing = catalog.missing()
            current = dict.fromkeys(told.keys() - {"", *SERVICES}, status.SERVICE_UNKNOWN)
            current |= {
                name: status.NOT_SERVING if name in missing else status.SERVING for name in catalog.names()
            }
            whole = status.SERVING if catalog.can_serve() else status.NOT_SERVING
            current |= dict.fromkeys(("", *SERVICES), whole)
            for service, state in current.items():
                if told.get(service) != state:
                    await self._health.set(service, state)
            told = current
            await asyncio.sleep(interval_s)


def _enable_reflection(server: grpc.aio.Server) -> None:
    # Reflection answers from one pool, so the packaged services' descriptors join Sluice's own.
    for packaged in (health_pb2, reflection_pb2):
        protos.POOL.AddSerializedFile(packaged.DESCRIPTOR.serialized_pb)
    names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server, pool=protos.POOL)
