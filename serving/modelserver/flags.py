"""`tensorflow_model_server`'s flags.

Forms: `--flag=value`, `--flag value`, `--flag` and `--noflag` for booleans, one dash or two, and dashes
in a name for underscores, as in Sluice's other commands. Flags of the original that make no sense here are
accepted, with a note that they have no effect; unknown ones are refused by name.
"""

from __future__ import annotations

import dataclasses
import os
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

TRUE_WORDS = frozenset({"true", "1", "t", "yes", "y"})
FALSE_WORDS = frozenset({"false", "0", "f", "no", "n"})
MAX_PORT = 2**16 - 1


class FlagError(ValueError):
    """The command line is not one that the original would take."""


def _flag(default: Any, text: str) -> Any:
    return field(default=default, metadata={"text": text})


@dataclass(frozen=True)
class Flags:
    """The flags that have an effect, with the original's defaults; `listen_before_loading` is our own."""

    port: int = _flag(8500, "TCP port of the gRPC API; 0 takes any free port, or none beside a socket path")
    grpc_socket_path: str = _flag("", "also listen on this UNIX socket for gRPC")
    rest_api_port: int = _flag(0, "port of the HTTP/REST API; 0 means none")
    rest_api_num_threads: int = _flag(0, "threads that work on REST calls; 0 means four a core")
    rest_api_timeout_in_ms: int = _flag(30000, "time limit of a REST call")
    rest_api_enable_cors_support: bool = _flag(default=False, text="add CORS headers to REST responses")
    model_name: str = _flag("default", "name of the model (ignored with --model_config_file)")
    model_base_path: str = _flag("", "folder of the model's versions (ignored with --model_config_file)")
    model_config_file: str = _flag("", "ModelServerConfig in text format: many models, policies, labels")
    model_config_file_poll_wait_seconds: int = _flag(0, "seconds between readings of it; 0 reads it once")
    file_system_poll_wait_seconds: int = _flag(1, "seconds between looks for versions; 0: one, -1: none")
    allow_version_labels_for_unavailable_models: bool = _flag(
        default=False, text="let new labels point to versions that are not available yet"
    )
    max_num_load_retries: int = _flag(5, "how often a failed load is tried again")
    load_retry_interval_micros: int = _flag(60_000_000, "time between tries; negative means none")
    num_load_threads: int = _flag(0, "how many loads may run at once; 0 means one a core")
    enable_model_warmup: bool = _flag(default=True, text="replay a model's warm-up requests before it serves")
    num_request_iterations_for_warmup: int = _flag(0, "how often each warm-up request is run; 0 means once")
    enable_batching: bool = _flag(default=False, text="join requests of many callers into one run")
    batching_parameters_file: str = _flag("", "BatchingParameters in text format")
    monitoring_config_file: str = _flag("", "MonitoringConfig in text format")
    ssl_config_file: str = _flag("", "SSLConfig in text format: keys and certificates for gRPC")
    saved_model_tags: str = _flag("serve", "comma-separated tags of the graph to load")
    grpc_channel_arguments: str = _flag("", "comma-separated key=value arguments of the gRPC server")
    grpc_max_threads: int = _flag(0, "most gRPC calls worked on at once; 0 means four a core")
    tensorflow_session_parallelism: int = _flag(0, "TensorFlow's threads, both kinds; 0 means by the machine")
    tensorflow_intra_op_parallelism: int = _flag(0, "threads within one op; 0 means by the machine")
    tensorflow_inter_op_parallelism: int = _flag(0, "ops that run at once; 0 means by the machine")
    enable_signature_method_name_check: bool = _flag(
        default=True, text="insist on the method names of classify and regress signatures"
    )
    enable_grpc_healthcheck_service: bool = _flag(default=False, text="answer grpc.health.v1.Health, too")
    enable_serialization_as_tensor_content: bool = _flag(
        default=False, text="answer Predict with tensor_content, not typed fields"
    )
    listen_before_loading: bool = _flag(
        default=False, text="listen at once and serve what is there and loads (the original has no such flag)"
    )
    version: bool = _flag(default=False, text="print the version and exit")


# What the original accepts and this server has no use for: whole numbers, fractions, booleans, text.
WITHOUT_EFFECT: dict[str, type] = {
    "enable_per_model_batching_parameters": bool,
    "num_unload_threads": int,
    "flush_filesystem_caches": bool,
    "tensorflow_session_config_file": str,
    "use_alts_credentials": bool,
    "platform_config_file": str,
    "per_process_gpu_memory_fraction": float,
    "remove_unused_fields_from_bundle_metagraph": bool,
    "prefer_tflite_model": bool,
    "use_tflite_model": bool,
    "num_tflite_pools": int,
    "num_tflite_interpreters_per_pool": int,
    "xla_cpu_compilation_enabled": bool,
    "xla_gpu_compilation_enabled": bool,
    "enable_profiler": bool,
    "thread_pool_factory_config_file": str,
    "mixed_precision": str,
    "skip_initialize_tpu": bool,
    "force_allow_any_version_labels_for_unavailable_models": bool,
    "enforce_session_run_timeout": bool,
}

_FIELDS = {f.name: f for f in dataclasses.fields(Flags)}
_TYPES: dict[str, type] = {name: type(f.default) for name, f in _FIELDS.items()} | WITHOUT_EFFECT
_PORTS = ("port", "rest_api_port")
_THREADS = ("grpc_max_threads", "rest_api_num_threads", "num_load_threads")


def parse(argv: Sequence[str]) -> tuple[Flags, list[str]]:
    """The flags of a command line, and the names of those given that have no effect here.

    Raises:
        FlagError: an unknown flag, a value that does not fit, or a stray argument.
    """
    values: dict[str, Any] = {}
    ignored: list[str] = []
    arguments = list(argv)
    while arguments:
        name, value = _take(arguments)
        if name in WITHOUT_EFFECT:
            ignored.append(name)
        else:
            values[name] = value
    flags = Flags(**values)
    _check(flags)
    return flags, ignored


def _check(flags: Flags) -> None:
    """Refuse values with which the server could not start."""
    for name in _PORTS:
        if not 0 <= getattr(flags, name) <= MAX_PORT:
            _refuse(name, str(getattr(flags, name)), f"a TCP port (0 to {MAX_PORT})")
    for name in _THREADS:
        if getattr(flags, name) < 0:
            _refuse(name, str(getattr(flags, name)), "a number of threads (0, for the default, or more)")
    for name in ("model_name", "model_base_path"):  # they go into messages, whose text is UTF-8
        bytes_given = os.fsencode(getattr(flags, name))
        try:
            bytes_given.decode()
        except UnicodeDecodeError:
            _refuse(name, ascii(bytes_given), "text in UTF-8")


def _take(arguments: list[str]) -> tuple[str, Any]:
    """Take one flag, with its value, from the front of `arguments`."""
    argument = arguments.pop(0)
    if not argument.startswith("-") or not argument.strip("-"):
        raise FlagError(f"unknown argument: {argument}")
    name, given, text = argument.lstrip("-").partition("=")
    name = name.replace("-", "_")
    if name not in _TYPES:
        positive = name.removeprefix("no")
        if name.startswith("no") and not given and _TYPES.get(positive) is bool:
            return positive, False
        raise FlagError(f"unknown argument: {argument}")
    kind = _TYPES[name]
    if given:
        return name, _convert(name, kind, text)
    if kind is bool:
        if arguments and arguments[0].lower() in TRUE_WORDS | FALSE_WORDS:
            return name, _convert(name, kind, arguments.pop(0))
        return name, True
    if not arguments:
        raise FlagError(f"--{name} needs a value: --{name}=VALUE")
    return name, _convert(name, kind, arguments.pop(0))


def _convert(name: str, kind: type, text: str) -> Any:
    if kind is bool:
        return _convert_bool(name, text)
    try:
        return kind(text)
    except ValueError:
        _refuse(name, text, "a whole number" if kind is int else "a number")


def _convert_bool(name: str, text: str) -> bool:
    word = text.lower()
    if word not in TRUE_WORDS | FALSE_WORDS:
        _refuse(name, text, "true or false")
    return word in TRUE_WORDS


def _refuse(name: str, text: str, wanted: str) -> NoReturn:
    raise FlagError(f"--{name}={text} is not {wanted}")


def usage(program: str = "sluice model-server") -> str:
    """What the flags are, one per line."""
    lines = [f"usage: {program}", "Flags:"]
    for name, f in _FIELDS.items():
        default = str(f.default).lower() if isinstance(f.default, bool) else repr(f.default).replace("'", '"')
        kind: Any = _TYPES[name]
        assert isinstance(kind, type | types.GenericAlias)
        lines.append(f"\t--{name + '=' + default:<55}\t{kind.__name__}\t{f.metadata['text']}")
    lines.append("Taken for the original's sake, without effect here:")
    lines += [f"\t--{name}" for name in sorted(WITHOUT_EFFECT)]
    return "\n".join(lines)
