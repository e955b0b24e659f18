"""Hold what manifests tell programs against the programs themselves: flags, settings, files."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import click
import typer.main
from google.protobuf import text_format

from k8s.tools.manifests import (
    Container,
    Document,
    config_map,
    containers,
    environment,
    name_of,
    of_kind,
)
from serving import protos, settings
from serving.backends import discovery
from serving.commands.app import build
from serving.errors import InvalidInput
from serving.modelserver import config, flags
from serving.modelserver.status import StatusError
from serving.processes import workers
from serving.rollout.plan_file import parse_plan

# Settings that name a file which must be there when the gateway starts.
_FILE_SETTINGS = (
    "keys_file", "jwks_file", "tls_certificate", "tls_key", "tls_client_ca", "feedback_key_file",
    "rollout_plan",
)  # fmt: skip
# What an image runs before `args`, by the end of its name; with `command` given, that is run instead.
_ENTRY_POINTS: Mapping[str, tuple[str, ...]] = {
    "sluice/gateway": ("sluice",),
    "sluice/model-server": ("sluice", "model-server"),
    "sluice/training": ("sluice", "train"),
}
_ORIGINAL = "/usr/bin/tensorflow_model_server"
_ENV_PREFIX = "SLUICE_"
_FILE_FLAGS: Mapping[str, Callable[[], Any]] = {
    "model_config_file": protos.ModelServerConfig,
    "batching_parameters_file": protos.BatchingParameters,
    "monitoring_config_file": protos.MonitoringConfig,
    "ssl_config_file": protos.SSLConfig,
}


def faults(documents: Sequence[Document]) -> Iterator[str]:
    """Flags, variables and files that the programs would refuse, and files that no program reads."""
    read: set[tuple[str, str]] = set()
    for container in containers(documents):
        words = _words(container)
        if not words:
            yield f"{container.where}: it is not known what image {container.spec.get('image')} runs"
            continue
        for fault in _program(container, words, documents, read):
            yield f"{container.where}: {fault}"
    yield from _dashboards(documents, read)
    for document in of_kind(documents, "ConfigMap"):
        for key in document.get("data", {}):
            if (document["metadata"]["name"], key) not in read:
                yield f"{name_of(document)}: no program reads {key}"


def _words(container: Container) -> list[str]:
    """The command line as the container runs it; empty if its image is not known."""
    if "command" in container.spec:
        return container.command_line
    repository = re.sub(r"(:[\w.-]+)?(@sha256:\w+)?$", "", container.spec.get("image", ""))
    for ending, entry_point in _ENTRY_POINTS.items():
        if repository == ending or repository.endswith("/" + ending):
            return [*entry_point, *container.spec.get("args", ())]
    return []


def _program(
    container: Container, words: list[str], documents: Sequence[Document], read: set[tuple[str, str]]
) -> Iterator[str]:
    program, arguments = words[0].rpartition("/")[2], words[1:]
    if program == "tensorflow_model_server" or (program == "sluice" and arguments[:1] == ["model-server"]):
        given = arguments if program == "tensorflow_model_server" else arguments[1:]
        yield from _model_server(container, given, documents, read)
    elif program == "sluice":
        yield from _sluice(arguments)
    elif program == "sh":
        yield from _script(container, arguments, documents, read)
    else:
        yield f"{program} is not a program whose flags can be checked"
    if program == "sluice" and arguments[:1] == ["gateway"]:
        yield from _settings(container, documents, read)


@cache
def _commands() -> Mapping[str, click.Command]:
    group = typer.main.get_command(build())
    return getattr(group, "commands", {})


def _sluice(arguments: Sequence[str]) -> Iterator[str]:
    """Faults of a command line of `sluice`, as its own parser finds them."""
    name = arguments[0] if arguments else ""
    if name not in _commands():
        yield f"sluice has no command {name!r}"
        return
    try:
        _commands()[name].make_context(name, list(arguments[1:]))
    except Exception as error:  # typer may carry a click of its own, with its own classes
        if not hasattr(error, "format_message"):
            raise
        yield f"sluice {name}: {error.format_message()}"


def _model_server(
    container: Container, arguments: Sequence[str], documents: Sequence[Document], read: set[tuple[str, str]]
) -> Iterator[str]:
    try:
        parsed, _ = flags.parse(arguments)
    except flags.FlagError as error:
        yield str(error)
        return
    if parsed.batching_parameters_file and not parsed.enable_batching:
        yield "--batching_parameters_file without --enable_batching ends the server as it starts"
    # A file that lies there for the overlay that turns batching on is read there.
    for key in () if parsed.enable_batching else ("batching.config",):
        read |= {(name, key) for name in _mounted(container).values()}
    for flag, message in _FILE_FLAGS.items():
        path = getattr(parsed, flag)
        if path:
            yield from _text_proto(container, flag, path, message(), documents, read)


def _text_proto(
    container: Container, flag: str, path: str, message: Any, documents: Sequence[Document],
    read: set[tuple[str, str]],
) -> Iterator[str]:  # fmt: skip
    text = _file(container, path, documents, read)
    if text is None:
        yield f"--{flag}={path}: no ConfigMap that is mounted has this file"
        return
    if container.command_line[:1] == [_ORIGINAL]:
        # The original reads buckets, too; the checks of our own server know folders only.
        text = re.sub(r'(base_path:\s*")[a-z0-9]+:/', r"\1", text)
    try:
        text_format.Parse(text, message, descriptor_pool=protos.POOL)
        if flag == "model_config_file":
            config.validate(message, None)
    except (text_format.ParseError, StatusError) as error:
        yield f"--{flag}={path}: {error}"


def _script(
    container: Container, arguments: Sequence[str], documents: Sequence[Document], read: set[tuple[str, str]]
) -> Iterator[str]:
    text = _file(container, arguments[0], documents, read) if arguments else None
    if text is None:
        yield f"no ConfigMap that is mounted has the script {' '.join(arguments)}"
        return
    done = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        yield f"{arguments[0]}: {done.stderr.strip()}"


def _settings(
    container: Container, documents: Sequence[Document], read: set[tuple[str, str]]
) -> Iterator[str]:
    for source in container.spec.get("envFrom", ()):
        name = source.get("configMapRef", {}).get("name")
        read |= {(name, key) for key in config_map(documents, name)}
    known = settings.Settings.model_fields
    given = {
        key.removeprefix(_ENV_PREFIX).lower(): value
        for key, value in environment(container, documents).items()
        if key.startswith(_ENV_PREFIX)
    }
    for name in sorted(given.keys() - known.keys()):
        yield f"{_ENV_PREFIX}{name.upper()} is not a setting of the gateway"
    try:
        loaded = settings.load(**{name: value for name, value in given.items() if name in known})
        fixed, names = discovery.split(loaded.replicas)
    except InvalidInput as error:
        yield error.message
        return
    if not fixed and not names:
        yield "no replica is named (SLUICE_REPLICAS)"
    for host, port in names:
        yield from _service(documents, host, port)
    yield from _unmounted(container, loaded)
    yield from _ending(container, loaded)
    if loaded.rollout_plan is not None:
        yield from _plan(container, str(loaded.rollout_plan), documents, read)
    yield from _models(loaded, documents)


def _models(loaded: settings.Settings, documents: Sequence[Document]) -> Iterator[str]:
    """Models that no replica has, and folders in which rollouts would have replicas look for nothing."""
    configured = _configured_models(documents)
    for model in loaded.models:
        if configured and model not in configured:
            yield f"model {model!r} is in no model server's configuration; there are: {', '.join(configured)}"
    if loaded.rollout_store is not None or loaded.rollout_namespace is not None:
        for model, base_path in configured.items():
            told = f"{loaded.replica_models_dir.rstrip('/')}/{model}"
            if told != base_path:
                yield f"rollouts have replicas look for model {model!r} in {told}; it is in {base_path}"


def _ending(container: Container, loaded: settings.Settings) -> Iterator[str]:
    """A pod that is killed while its gateway drains."""
    pause_s = container.spec.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    workers_s = workers.END_GRACE_S if loaded.workers > 1 else 0.0
    needed_s = pause_s + loaded.drain_timeout_s + workers_s
    grace_s = container.pod.get("terminationGracePeriodSeconds", 30)
    if grace_s < needed_s:
        yield (
            f"terminationGracePeriodSeconds is {grace_s}; preStop, SLUICE_DRAIN_TIMEOUT_S and the end of "
            f"workers take {needed_s:g}"
        )


def _unmounted(container: Container, loaded: settings.Settings) -> Iterator[str]:
    """Files that the settings name, in folders where no volume is mounted."""
    mounts = {mount["mountPath"] for mount in container.spec.get("volumeMounts", ())}
    for name in _FILE_SETTINGS:
        path = getattr(loaded, name)
        if path is not None and str(path.parent) not in mounts:
            yield f"{_ENV_PREFIX}{name.upper()}={path}: no volume is mounted at {path.parent}"


def _plan(
    container: Container, path: str, documents: Sequence[Document], read: set[tuple[str, str]]
) -> Iterator[str]:
    text = _file(container, path, documents, read)
    if text is None:
        yield f"{_ENV_PREFIX}ROLLOUT_PLAN={path}: no ConfigMap that is mounted has this file"
        return
    try:
        parse_plan(text, source=path)
    except InvalidInput as error:
        yield error.message


def _service(documents: Sequence[Document], host: str, port: int) -> Iterator[str]:
    """Whether a name that the gateway follows is a headless Service with that port."""
    found = [
        each for each in of_kind(documents, "Service") if each["metadata"]["name"] == host.partition(".")[0]
    ]
    if not found:
        yield f"replicas: there is no Service {host}"
    for service in found:
        if service["spec"].get("clusterIP") != "None":
            yield f"replicas: Service {host} is not headless, so its name does not resolve to the replicas"
        if port not in [each["port"] for each in service["spec"]["ports"]]:
            yield f"replicas: Service {host} has no port {port}"


def _configured_models(documents: Sequence[Document]) -> dict[str, str]:
    """Where each model of the model servers' configurations is, by its name."""
    found: dict[str, str] = {}
    for document in of_kind(documents, "ConfigMap"):
        message = protos.ModelServerConfig()
        with suppress(text_format.ParseError):  # said by the check of the flag that names the file
            text = document.get("data", {}).get("models.config", "")
            text_format.Parse(text, message, descriptor_pool=protos.POOL)
        found |= {each.name: each.base_path for each in message.model_config_list.config}
    return found


def _dashboards(documents: Sequence[Document], read: set[tuple[str, str]]) -> Iterator[str]:
    """Grafana's sidecar loads what has its label: JSON with a title, a uid and panels."""
    for document in of_kind(documents, "ConfigMap"):
        if "grafana_dashboard" not in document["metadata"].get("labels", {}):
            continue
        for key, text in document.get("data", {}).items():
            read.add((document["metadata"]["name"], key))
            try:
                dashboard = json.loads(text)
            except json.JSONDecodeError as error:
                yield f"{name_of(document)}: {key} is not JSON: {error}"
                continue
            missing = {"title", "uid", "panels"} - dashboard.keys()
            if missing:
                yield f"{name_of(document)}: {key} has no {', '.join(sorted(missing))}"


def _mounted(container: Container) -> dict[str, str]:
    """Mount path -> name of the ConfigMap that is mounted there."""
    volumes = {volume["name"]: volume for volume in container.pod.get("volumes", ())}
    return {
        mount["mountPath"]: volumes[mount["name"]]["configMap"]["name"]
        for mount in container.spec.get("volumeMounts", ())
        if "configMap" in volumes.get(mount["name"], {})
    }


def _file(
    container: Container, path: str, documents: Sequence[Document], read: set[tuple[str, str]]
) -> str | None:
    folder, _, key = path.rpartition("/")
    name = _mounted(container).get(folder)
    if name is None or key not in config_map(documents, name):
        return None
    read.add((name, key))
    return config_map(documents, name)[key]
