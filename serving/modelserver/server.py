"""The composition root: flags in, a running server, a clean end on SIGTERM."""

from __future__ import annotations

import gc
import logging
import os
import re
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from serving import ports, protos
from serving.cores import usable_cores
from serving.memory import share_arenas, trim
from serving.modelserver import config as configs
from serving.modelserver import flags as flagging
from serving.modelserver.batching import BatchingOptions, options_from
from serving.modelserver.flags import FlagError, Flags
from serving.modelserver.metrics import Metrics
from serving.modelserver.status import StatusError, failed_precondition, invalid_argument
from serving.modelserver.tensorflow_alone import import_tensorflow_alone

if TYPE_CHECKING:
    from serving.modelserver.core import ServerCore
    from serving.modelserver.http_server import HttpServer
    from serving.modelserver.manager import ModelManager
    from serving.modelserver.rpc import RpcServer
    from serving.modelserver.services import Services

logger = logging.getLogger(__name__)

START_FAILED = 255  # the original's -1
GRACE_S = 30.0  # for calls in flight at the time of SIGTERM
THREADS_PER_CORE = 4  # the original's default for both transports
# Loading a model and its first calls free several times its size.
TRIM_INTERVAL_S = 5.0


def run(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT; the exit status is the original's."""
    try:
        flags, ignored = flagging.parse(argv)
    except FlagError as error:
        print(f"{error}\n{flagging.usage()}", file=sys.stderr)
        return START_FAILED
    if find_spec("tensorflow") is None:
        print("The model server needs TensorFlow: pip install 'sluice[model-server]'", file=sys.stderr)
        return START_FAILED
    if flags.version:
        print(f"TensorFlow ModelServer: {metadata.version('sluice')} (Sluice)")
        print(f"TensorFlow Library: {metadata.version('tensorflow')}")
        return 0
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname).1s %(name)s: %(message)s"
    )
    for name in ignored:
        logger.warning("--%s has no effect in this server", name)
    share_arenas()  # otherwise each of the threads that run models keeps megabytes of its own
    return _end_process(_serve(flags))


def _serve(flags: Flags) -> int:
    end = _End()
    server = Server(flags)
    try:
        server.start()
    except StatusError as error:
        print(f"Failed to start server. Error: {error}", file=sys.stderr)
        return START_FAILED
    end.wait()
    if not server.stop():
        logger.warning("Something is still running; ending without it")
    return 0


def _end_process(status: int) -> NoReturn:
    """End at once. TensorFlow cannot be interrupted: tearing the interpreter down beneath a load or a run
    would wait for it, or crash.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a full disk, or a reader that is gone
            stream.flush()
    os._exit(status)


class _End:
    """SIGTERM and SIGINT. While the server starts, which can take a minute on a busy machine, they end the
    process, for nobody waits for an answer yet; afterwards they end `wait`.

    A thread waits for them: a handler would run amid whatever the main thread does, with locks held.
    """

    def __init__(self) -> None:
        self._is_started, self._is_asked = threading.Event(), threading.Event()
        self._told, telling = socket.socketpair()
        telling.setblocking(False)
        signal.set_wakeup_fd(telling.detach(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def _listen(self) -> None:
        self._told.recv(1)
        if not self._is_started.is_set():
            _end_process(0)
        self._is_asked.set()

    def wait(self) -> None:
        """Wait, once the server has started, for a signal."""
        self._is_started.set()
        self._is_asked.wait()


class Server:
    """A model server: its parts are made and bound by `start`, and released by `stop`."""

    def __init__(self, flags: Flags) -> None:
        self._flags = flags
        self._stopping = threading.Event()
        self._manager: ModelManager | None = None
        self._rpc: RpcServer | None = None
        self._http: HttpServer | None = None
        self._metrics = Metrics()

    def start(self) -> None:
        """Load the configured models, then listen; raises StatusError if either fails.

        With `--listen_before_loading`, a model that does not load does not keep the others from serving.
        """
        flags = self._flags
        config = _initial_config(flags)
        configs.validate(config, None)
        ssl_config, arguments = _ssl_config(flags), _channel_arguments(flags.grpc_channel_arguments)
        _find_left_socket(flags.grpc_socket_path)
        _check_port(flags.port, arguments)
        core = self._make_core(_batching_options(flags))
        if flags.file_system_poll_wait_seconds > 0:
            self._every(flags.file_system_poll_wait_seconds, core.poll, "file-system-poll")
        core.reload(config, is_waiting=not flags.listen_before_loading)
        if flags.model_config_file and flags.model_config_file_poll_wait_seconds > 0:
            self._every(
                flags.model_config_file_poll_wait_seconds, lambda: _reread_config(flags, core), "config-poll"
            )
        self._listen_grpc(core, ssl_config, arguments)
        self._listen_http(core)
        self._every(TRIM_INTERVAL_S, trim, "trim")

    def _make_core(self, batching: BatchingOptions | None) -> ServerCore:
        # TensorFlow is imported only here, so that a wrong flag or file is reported at once.
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        import_tensorflow_alone()
        from serving.modelserver.core import ServerCore
        from serving.modelserver.loading import Loading
        from serving.modelserver.manager import ModelManager, RetryPolicy

        # What was imported stays for good: a collection after an unload need not scan it, which would
        # stop all requests for a third of a second.
        gc.collect()
        gc.freeze()
        flags = self._flags
        retry = RetryPolicy(flags.max_num_load_retries, max(flags.load_retry_interval_micros, 0) / 1e6)
        loading = Loading.from_flags(flags, batching, self._metrics)
        self._manager = ModelManager(loading.load, retry, flags.num_load_threads or usable_cores())
        return ServerCore(
            self._manager,
            allow_labels_for_unavailable=flags.allow_version_labels_for_unavailable_models,
            poll_wait_s=flags.file_system_poll_wait_seconds,
            is_tolerant=flags.listen_before_loading,
        )

    def _services(self, core: ServerCore) -> Services:
        from serving.modelserver.predict import PredictOptions
        from serving.modelserver.services import Services

        options = PredictOptions(
            check_method_names=self._flags.enable_signature_method_name_check,
            as_content=self._flags.enable_serialization_as_tensor_content,
        )
        return Services(core, options, self._metrics)

    def _listen_grpc(
        self, core: ServerCore, ssl_config: Any | None, arguments: list[tuple[str, Any]]
    ) -> None:
        from serving.modelserver.rpc import Listening, RpcServer, credentials_from

        flags = self._flags
        threads = flags.grpc_max_threads or THREADS_PER_CORE * usable_cores()
        rpc = RpcServer(self._services(core), threads, arguments)
        if flags.enable_grpc_healthcheck_service:
            rpc.add_health()
        credentials = credentials_from(ssl_config) if ssl_config is not None else None
        left = _find_left_socket(flags.grpc_socket_path)
        if left is not None:
            with suppress(OSError):  # where it cannot be removed, listening fails and says so
                left.unlink()
        has_port = flags.port != 0 or not flags.grpc_socket_path
        where = Listening(flags.port if has_port else None, flags.grpc_socket_path)
        _check_port(flags.port, arguments)  # only now: loading may have taken a minute
        port = rpc.listen(where, credentials)
        rpc.start()
        self._rpc = rpc
        if port is not None:
            logger.info("Running gRPC ModelServer at 0.0.0.0:%d ...", port)
        if flags.grpc_socket_path:
            logger.info("Running gRPC ModelServer at UNIX socket %s ...", flags.grpc_socket_path)

    def _listen_http(self, core: ServerCore) -> None:
        from serving.modelserver.http_server import DEFAULT_METRICS_PATH, HttpApp, HttpOptions, HttpServer
        from serving.modelserver.rest import RestApi

        flags = self._flags
        if not flags.rest_api_port:
            return
        if flags.rest_api_port == flags.port:
            logger.error(
                "server_options.http_port cannot be same as grpc_port. Please use a different port for "
                "HTTP/REST API. Skipped exporting HTTP/REST API."
            )
            return
        monitoring = protos.MonitoringConfig()
        if flags.monitoring_config_file:
            configs.read_text_proto(flags.monitoring_config_file, monitoring)
        prometheus = monitoring.prometheus_config
        options = HttpOptions(
            timeout_s=flags.rest_api_timeout_in_ms / 1000 if flags.rest_api_timeout_in_ms > 0 else None,
            threads=flags.rest_api_num_threads or THREADS_PER_CORE * usable_cores(),
            has_cors=flags.rest_api_enable_cors_support,
            metrics_path=(prometheus.path or DEFAULT_METRICS_PATH) if prometheus.enable else None,
        )
        app = HttpApp(RestApi(self._services(core)), self._metrics, options)
        try:
            http = HttpServer(app, flags.rest_api_port)
        except OSError as error:  # as in the original, gRPC goes on without it
            logger.error(  # noqa: TRY400 - the text says it all
                "Failed to start HTTP Server at localhost:%d: %s", flags.rest_api_port, error
            )
            return
        http.start()
        self._http = http
        logger.info("Exporting HTTP/REST API at:localhost:%d ...", http.port)

    def _every(self, interval_s: float, work: Callable[[], object], name: str) -> None:
        """Do `work` again and again on a thread of its own, until the end."""

        def loop() -> None:
            while not self._stopping.wait(interval_s):
                try:
                    work()
                except Exception:
                    logger.exception("%s failed; it is tried again", name)

        threading.Thread(target=loop, name=name, daemon=True).start()

    def stop(self) -> bool:
        """Accept no more calls; finish those in flight, for at most `GRACE_S`. False if some still run."""
        deadline = time.monotonic() + GRACE_S
        self._stopping.set()
        if self._http is not None:
            self._http.stop()
        return all(
            [
                self._rpc is None or self._rpc.stop(GRACE_S),
                self._http is None or self._http.wait_stopped(max(deadline - time.monotonic(), 0.0)),
                self._manager is None or self._manager.close(0.0),
            ]
        )


def _initial_config(flags: Flags) -> Any:
    if flags.model_config_file:
        return configs.read_text_proto(flags.model_config_file, protos.ModelServerConfig())
    if not flags.model_base_path:
        raise invalid_argument(
            "Both server_options.model_base_path and server_options.model_config_file are empty!\n"
            + flagging.usage()
        )
    logger.info(
        "Building single TensorFlow model file config: model_name: %s model_base_path: %s",
        flags.model_name,
        flags.model_base_path,
    )
    return configs.single_model(flags.model_name, flags.model_base_path)


def _batching_options(flags: Flags) -> BatchingOptions | None:
    if not flags.enable_batching:
        if flags.batching_parameters_file:
            raise invalid_argument(
                "server_options.batching_parameters_file is set without setting "
                "server_options.enable_batching to true."
            )
        return None
    parameters = protos.BatchingParameters()
    if flags.batching_parameters_file:
        configs.read_text_proto(flags.batching_parameters_file, parameters)
    else:
        parameters.thread_pool_name.value = "model_server_batch_threads"
    return options_from(parameters, default_threads=usable_cores())


def _ssl_config(flags: Flags) -> Any | None:
    if not flags.ssl_config_file:
        return None
    config = configs.read_text_proto(flags.ssl_config_file, protos.SSLConfig())
    if config.client_verify and not config.custom_ca:
        raise invalid_argument(
            f"{flags.ssl_config_file}: client_verify needs custom_ca, the certificates (PEM) of the "
            "authorities that sign those of clients"
        )
    for name in ("server_key", "server_cert"):
        if "-----BEGIN " not in getattr(config, name):  # gRPC would only say that it cannot bind its port
            raise invalid_argument(
                f"{flags.ssl_config_file}: {name} holds nothing in PEM (-----BEGIN …); it takes the text "
                "itself, not the path of a file"
            )
    return config


def _check_port(port: int, arguments: Sequence[tuple[str, Any]]) -> None:
    """Raises StatusError if the port is taken. Asked before gRPC, which would write to its log first."""
    try:
        ports.check("0.0.0.0", port, shared=dict(arguments).get("grpc.so_reuseport") == 1)  # noqa: S104
    except OSError as error:
        raise failed_precondition(
            f"Failed to BuildAndStart gRPC server: cannot listen on 0.0.0.0:{port}: {error.strerror}"
        ) from error


def _find_left_socket(path: str) -> Path | None:
    """The UNIX socket that a server which was killed left at `path`, if any.

    Raises:
        StatusError: something else is there, which is not ours to remove.
    """
    if not path:
        return None
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failed_precondition(f"--grpc_socket_path={path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise failed_precondition(
            f"--grpc_socket_path={path}: a {'folder' if stat.S_ISDIR(mode) else 'file'} lies there, and no "
            "socket; name a path that is free"
        )
    return Path(path)


def _reread_config(flags: Flags, core: ServerCore) -> None:
    try:
        config = configs.read_text_proto(flags.model_config_file, protos.ModelServerConfig())
    except StatusError as error:
        logger.error("Failed to read ModelServerConfig file: %s", error)  # noqa: TRY400 - the text says it all
        return
    try:
        # Without waiting: a model that never loads, its path misspelt, would hold up all later configs.
        core.reload(config, is_waiting=False)
    except StatusError as error:
        logger.error("PollFilesystemAndReloadConfig failed to ReloadConfig: %s", error)  # noqa: TRY400 - as above


def _channel_arguments(text: str) -> list[tuple[str, Any]]:
    """`key=value,key=value`; whole numbers of 32 bits are passed on as such, as in the original."""
    arguments: list[tuple[str, Any]] = []
    for part in filter(None, text.split(",")):
        key, separator, value = part.partition("=")
        if not separator:
            raise invalid_argument(f"--grpc_channel_arguments: {part} is not of the form key=value")
        is_number = re.fullmatch("[+-]?[0-9]{1,10}", value) and -(2**31) <= int(value) < 2**31
        arguments.append((key, int(value) if is_number else value))
    return arguments
