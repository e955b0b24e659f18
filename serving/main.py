"""The composition root: builds a gateway from its settings, starts it, and drains it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
import uvloop
from prometheus_client import CollectorRegistry

from serving import models_folder, observed
from serving.access.callers import Callers
from serving.backends import discovery
from serving.backends.pool import Pool
from serving.backends.replica import Replica
from serving.backends.tfserving import TensorFlowServing
from serving.catalog import Catalog
from serving.certificates import Certificates
from serving.errors import InvalidInput
from serving.gateway import Gateway
from serving.memory import give_back_memory, start_threads, trim_steadily
from serving.page.curves import Curves
from serving.page.state import of_one_worker
from serving.processes import supervisor, workers
from serving.processes.peers import Peers, samples
from serving.processes.supervisor import ModelServerProcess
from serving.processes.upstream import ConfigFile, Upstream
from serving.processes.work_folder import work_folder
from serving.rest import app
from serving.rest.server import HttpServer, listen
from serving.rest.unread import Unread
from serving.rpc.server import RpcServer
from serving.settings import Settings
from serving.telemetry import stacks
from serving.telemetry.metrics import Metrics
from serving.telemetry.watchdog import Watchdog

_log = structlog.get_logger()

# Decoding threads need the interpreter lock for a moment now and then. By default they wait up to 5 ms for
# the event loop to release it, and a core is idle meanwhile: with all cores decoding that costs a fifth of
# their throughput.
SWITCH_INTERVAL_S = 20e-6
# Requests leave next to no cycles behind, but every collection walks whatever is in flight: at the default
# threshold of 700 objects, collections took 4 % of the event loop's time.
GC_THRESHOLDS = (10_000, 20, 50)
# Far more connections than one process answers.
MOST_FILES = 65_536


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway whose ports are open; its models may still be loading."""

    gateway: Gateway
    catalog: Catalog
    pool: Pool
    http_url: str
    grpc_address: str

    async def ready(self) -> dict[str, list[int]]:
        """The versions of each model, as soon as there are any of each."""
        await self.catalog.ready()
        return {name: sorted(self.catalog.versions(name)) for name in self.catalog.names()}


class Up(Protocol):
    """A gateway, of one process or of several, whose ports are open."""

    @property
    def http_url(self) -> str:
        """Where it serves HTTP."""

    @property
    def grpc_address(self) -> str:
        """Where it serves gRPC."""

    async def ready(self) -> dict[str, list[int]]:
        """The versions of each model, as soon as there are any of each."""


WhileUp = Callable[[Up], Awaitable[None]]
"""What to do while the gateway is up; when it returns, the gateway is drained."""


async def run_gateway(settings: Settings, while_up: WhileUp) -> None:
    """Run a gateway in front of `settings.replicas` until `while_up` returns, or a signal ends it.

    Raises:
        InvalidInput: a port is taken, or the settings name no replica or no model.
    """
    if not settings.replicas:
        raise InvalidInput("no replica is named; pass --replica HOST:PORT, or use `sluice serve`")
    if not settings.models:
        raise InvalidInput("no model is named; pass --model NAME for each model that the replicas have")
    upstream = Upstream(settings.replicas, settings.models, settings.replica_models_dir)
    await _run(settings, upstream, new_metrics(), while_up)


async def run_serve(settings: Settings, while_up: WhileUp) -> None:
    """Run a model server over `settings.models_dir` as a child, and a gateway in front; see `run_gateway`.

    Raises:
        InvalidInput: a port is taken, or there is no model in the folder.
        FailedPrecondition: the model server is not a program that can be found.
    """
    command = supervisor.find_program(settings.model_server)
    models = settings.models or tuple(models_folder.find_models(settings.models_dir))
    if not models:
        raise models_folder.no_model(settings.models_dir)
    metrics = new_metrics()
    with work_folder() as work_dir:
        config = ConfigFile(work_dir / "models.config", settings.models_dir)
        config.write(models_folder.first_config(settings, models))
        child = ModelServerProcess(command, work_dir=work_dir, config=config, metrics=metrics)
        upstream = Upstream((child.address,), models, settings.models_dir, config)
        async with _in_background(child.run()):
            await _run(settings, upstream, metrics, while_up)


async def _run(settings: Settings, upstream: Upstream, metrics: Metrics, while_up: WhileUp) -> None:
    """Run one gateway in this process, or several as its children."""
    if settings.workers == 1:
        await run_one(settings, upstream, metrics, while_up)
        return
    with work_folder() as folder:
        async with (
            Peers(folder, "parent").answering({"metrics": lambda: samples(metrics.registry)}),
            workers.up(settings, upstream, folder) as running,
        ):
            await _until_signalled(while_up(running), running.dump)


async def run_one(
    settings: Settings, upstream: Upstream, metrics: Metrics, while_up: WhileUp, peers: Peers | None = None
) -> None:
    """Run a gateway in this process until `while_up` returns, or a signal ends it.

    Args:
        settings: its settings.
        upstream: what it is in front of.
        metrics: what it measures with.
        while_up: what to do while it is up.
        peers: the other workers on its ports; None: it has the ports to itself.
    """
    async with (
        gateway_up(settings, upstream.replicas, upstream.models, metrics, peers) as running,
        _in_background(models_folder.follow(upstream, running.pool, running.catalog, settings)),
        _rollouts_of(settings, running, upstream),
    ):
        await _until_signalled(while_up(running), stacks.dump_to_stderr)


def new_metrics() -> Metrics:
    """Metrics in a registry of their own."""
    return Metrics(CollectorRegistry())


def _trimming(gateway: Gateway) -> Coroutine[Any, Any, None]:
    """Gives memory back to the system, sooner if the gateway is close to its limit."""
    return trim_steadily(asyncio.Event() if gateway.pressure is None else gateway.pressure.short)


@asynccontextmanager
async def gateway_up(
    settings: Settings,
    replicas: Sequence[str],
    models: Sequence[str],
    metrics: Metrics,
    peers: Peers | None = None,
) -> AsyncIterator[Running]:
    """A gateway with open ports while the block runs; drained at its end."""
    callers = Callers.from_settings(settings)
    _warn_if_open(settings, callers)
    certificates = Certificates.from_settings(settings)
    fixed, names = discovery.split(replicas)
    pool = Pool([_connect(address) for address in fixed], calls_per_replica=settings.calls_per_replica)
    following = discovery.Discovery(pool, names, _connect)
    catalog = Catalog(pool, models, default_model=settings.default_model, metrics=metrics)
    shared = peers is not None
    with contextlib.closing(listen(settings.http_host, settings.http_port, shared=shared)) as listener:
        gateway = Gateway(settings, pool, catalog, metrics, callers)
        rollouts = observed.Rollouts(gateway)
        observed.watch(gateway, certificates, rollouts)
        curves = Curves(rollouts)
        rpc = RpcServer(
            gateway, settings.grpc_host, settings.grpc_port, shared=shared, certificates=certificates
        )
        unread = Unread(gateway.admission.limits[1])
        http = HttpServer(app.build(gateway, curves, peers), settings, certificates, unread)
        http_url, grpc_address = settings.http_url(_port(listener)), settings.grpc_address(rpc.port)
        async with (
            contextlib.aclosing(pool),
            gateway,
            _answering(gateway, peers),
            _in_background(
                catalog.watch(settings.status_interval_s),
                following.watch(settings.discovery_interval_s),
                rpc.report_health(settings.status_interval_s),
                callers.watch(),
                curves.watch(),
                _trimming(gateway),
                *(() if certificates is None else (certificates.watch(),)),
            ),
            Watchdog(metrics.stalled).watching(),
            _serving(gateway, http, listener, rpc),
        ):
            yield Running(gateway, catalog, pool, http_url, grpc_address)


def _port(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


@asynccontextmanager
async def _serving(
    gateway: Gateway, http: HttpServer, listener: socket.socket, rpc: RpcServer
) -> AsyncIterator[None]:
    """Serve both ports while the block runs; at its end, answer what they have accepted."""
    async with asyncio.TaskGroup() as servers:
        await rpc.start()
        servers.create_task(http.serve(sockets=[listener]))
        try:
            yield
        finally:
            _log.info("shutting down", in_flight=gateway.admission.in_flight)
            gateway.draining = True
            await asyncio.gather(rpc.stop(gateway.settings.drain_timeout_s), http.drain(listener))


def _warn_if_open(settings: Settings, callers: Callers) -> None:
    """Say loudly that strangers may come in, if they may."""
    for protocol, host in (("HTTP", settings.http_host), ("gRPC", settings.grpc_host)):
        if callers.open and not _is_loopback(host):
            _log.warning(
                f"ANYONE who reaches this machine may use the {protocol} API: it listens on {host} and asks "
                "for no key. Set keys_file (see `sluice keys --help`) or listen on 127.0.0.1"
            )
        elif not callers.open and settings.tls_certificate is None and not _is_loopback(host):
            _log.warning(f"keys cross the network unencrypted: {protocol} listens on {host} without TLS")


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _connect(address: str) -> Replica:
    return Replica(TensorFlowServing(address))


@asynccontextmanager
async def _answering(gateway: Gateway, peers: Peers | None) -> AsyncIterator[None]:
    """Answer the other workers' questions while the block runs."""
    if peers is None:
        yield
        return
    answers = {
        "metrics": lambda: samples(gateway.metrics.registry),
        "page": lambda: of_one_worker(gateway),
        "stacks": stacks.dump,
    }
    async with peers.answering(answers):
        yield


@asynccontextmanager
async def _rollouts_of(settings: Settings, running: Running, upstream: Upstream) -> AsyncIterator[None]:
    """Let new versions in by rollouts while the block runs, if the settings say so."""
    if settings.rollout_store is None and settings.rollout_namespace is None:
        yield
        return
    from serving.rollout import assembly

    gateway = running.gateway
    with assembly.shared_by(settings, gateway.steering, gateway.metrics, upstream.models_dir) as shared:
        controller = assembly.build(
            settings,
            running.pool,
            running.catalog,
            gateway.steering,
            gateway.metrics,
            shared,
            models_dir=upstream.models_dir,
            on_config=None if upstream.config is None else upstream.config.write,
        )
        gateway.desk = shared.desk
        async with _in_background(controller.watch()):
            yield


@asynccontextmanager
async def _in_background(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run coroutines while the block runs, and cancel them at its end; if one fails, so does the block."""
    async with asyncio.TaskGroup() as tasks:
        started = [tasks.create_task(each) for each in work]
        try:
            yield
        finally:
            for task in started:
                task.cancel()


async def _until_signalled(work: Awaitable[None], dump: Callable[[], None]) -> None:
    """Run `work` to its end, or until SIGTERM, SIGINT or SIGHUP, which cancel it and count as a regular end.

    Draining then runs to its end: another SIGTERM or SIGHUP changes nothing, another SIGINT cuts it short.
    SIGHUP, which comes when a terminal closes, stays ignored if it was (nohup). SIGUSR1 calls `dump`.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    ending = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ending.append(signal.SIGHUP)
    for number in (*ending, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel, f"{number.name} came")
    loop.add_signal_handler(signal.SIGUSR1, dump)
    try:
        await task
    except asyncio.CancelledError:
        if asyncio.current_task().cancelling():  # type: ignore[union-attr]  # a coroutine runs in a task
            raise
    finally:
        for number in ending:
            loop.add_signal_handler(number, _log.info, f"{number.name} came; shutting down already")
        loop.remove_signal_handler(signal.SIGINT)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run the whole program on uvloop."""
    _allow_many_files()
    give_back_memory()
    gc.freeze()  # what was imported stays: no collection needs to look at it
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    uvloop.run(_with_threads(work))


def _allow_many_files() -> None:
    """Raise the limit on open files, since each connection is one: shells give 1,024 where more may be had.

    Not to infinity: code that walks every possible file descriptor takes minutes for a billion.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if resource.RLIM_INFINITY != soft < most:
        with contextlib.suppress(ValueError, OSError):  # macOS has another limit, and nothing depends on this
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _with_threads(work: Coroutine[Any, Any, None]) -> None:
    start_threads()
    await _until_signalled(work, stacks.dump_to_stderr)  # until it is up, and says so itself
