"""The gRPC server: services, health and reflection on one port."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, text_format
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serving import ports, protos
from serving.certificates import Certificates
from serving.errors import InvalidInput
from serving.gateway import Gateway
from serving.rpc.classification import ImageClassification
from serving.rpc.health import Health, Status
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

_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"

# Room for the message around the images.
_OVERHEAD_BYTES = 2**20
# Proxies and phones ping every ten seconds or more. gRPC's default, five minutes, ends the connection of such
# a client, with all its calls, at its third ping while it waits for an answer.
_PING_INTERVAL_MS = 5_000
# gRPC's largest number of milliseconds, 25 days, which it takes to mean no limit.
_FOR_EVER = 2**31 - 1
# Enough for a full batch of small images to be here before it is read.
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
        InvalidInput: the port is in use, or the host is not an address of this machine.
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
        gates = () if gateway.pressure is None else (MemoryGate(gateway, gateway.pressure),)
        self._health = Health()
        self._server = grpc.aio.server(interceptors=gates, options=_options(gateway, shared=shared))
        self._server.add_generic_rpc_handlers(
            (
                ImageClassification(gateway).handler(),
                OpenInferenceRpc(gateway).handler(),
                RolloutsRpc(gateway).handler(),
                *TensorFlowServingRpc(gateway).handlers(),
                self._health.handler(),
            )
        )
        _enable_reflection(self._server)
        self.port = _listen(self._server, host, port, shared=shared, certificates=certificates)

    async def start(self) -> None:
        """Start accepting calls."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Tell clients to go elsewhere, finish what is in flight within `grace_s` seconds, stop."""
        self._health.end()
        await self._server.stop(grace_s)

    async def report_health(self, interval_s: float) -> None:
        """Keep `grpc.health.v1` up to date, for ever.

        Services are SERVING while requests should be sent here; each model is listed separately, by its name.
        """
        while True:
            catalog = self._gateway.catalog
            missing = catalog.missing()
            statuses = {
                name: Status.NOT_SERVING if name in missing else Status.SERVING for name in catalog.names()
            }
            whole = Status.SERVING if catalog.can_serve() else Status.NOT_SERVING
            self._health.tell(statuses | dict.fromkeys(("", *SERVICES), whole))
            await asyncio.sleep(interval_s)


def _options(gateway: Gateway, *, shared: bool) -> list[tuple[str, int]]:
    settings = gateway.settings
    options = [
        ("grpc.max_receive_message_length", settings.max_body_bytes + _OVERHEAD_BYTES),
        ("grpc.so_reuseport", int(shared)),  # else two servers on one port are an error, not a lottery
        # gRPC tells clients by GOAWAY, a tenth sooner or later, and lets calls end (proposal A9).
        ("grpc.max_connection_age_ms", min(round(settings.connection_age_s * 1000), _FOR_EVER)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _PING_INTERVAL_MS),
    ]
    if gateway.pressure is not None:
        # Otherwise gRPC accepts up to 4 MB of each message that is not being read yet. One that is being
        # read comes as fast as before: for it the window opens as wide as the message is large.
        options += [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", _UNREAD_BYTES)]
    return options


def _listen(
    server: grpc.aio.Server, host: str, port: int, *, shared: bool, certificates: Certificates | None
) -> int:
    """The port that a server listens on from now; raises InvalidInput, as `RpcServer` says."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        ports.check(host, port, shared=shared)
        if certificates is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, certificates.for_grpc())
    except OSError as error:
        raise ports.refusal("gRPC", host, port, error) from error
    except RuntimeError as error:
        raise InvalidInput(
            f"cannot listen on {host}:{port} for gRPC, though it was free just now; gRPC's log says why"
        ) from error


def _enable_reflection(server: grpc.aio.Server) -> None:
    # Reflection answers from one pool, so the packaged services' descriptors join Sluice's own.
    for serialized in (
        health_pb2.DESCRIPTOR.serialized_pb,
        reflection_pb2.DESCRIPTOR.serialized_pb,
        _reflection_v1().SerializeToString(),
    ):
        protos.POOL.AddSerializedFile(serialized)
    names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME, _REFLECTION_V1)
    reflection.enable_server_reflection(names, server, pool=protos.POOL)
    # The package implements only v1alpha; v1 has the same messages on the wire.
    answers = grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer(names, pool=protos.POOL).ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler(_REFLECTION_V1, {"ServerReflectionInfo": answers})
    server.add_generic_rpc_handlers((handler,))


def _reflection_v1() -> descriptor_pb2.FileDescriptorProto:
    """The descriptor of the reflection protocol's v1: that of v1alpha, renamed."""
    before = descriptor_pb2.FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    found = text_format.Parse(str(before).replace(".v1alpha", ".v1"), descriptor_pb2.FileDescriptorProto())
    found.name = "grpc/reflection/v1/reflection.proto"
    return found
