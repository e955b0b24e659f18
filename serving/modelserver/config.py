"""What models to serve: `ModelServerConfig`, read, checked and turned into plain values.

The checks, their order and their texts are those of the original's `server_core.cc`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from serving import protos
from serving.modelserver.lifecycle import State, VersionState
from serving.modelserver.status import StatusError, failed_precondition, invalid_argument, not_found

PLATFORM = "tensorflow"
MODEL_TYPE_TENSORFLOW = 1


@dataclass(frozen=True)
class ModelEntry:
    """One model of a config.

    Attributes:
        name: how requests name it.
        base_path: the folder that holds its versions.
        policy: the `ServableVersionPolicy` message: latest n, all, or specific versions.
        labels: label -> version.
    """

    name: str
    base_path: Path
    policy: Any
    labels: Mapping[str, int]


def read_text_proto(path: str, message: Any) -> Any:
    """Fill `message` from the text-format file at `path`, and return it.

    Raises:
        StatusError: NOT_FOUND if it cannot be read, INVALID_ARGUMENT if it does not parse.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise not_found(f"{path}; {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise invalid_argument(f"Invalid protobuf file: '{path}': not UTF-8 text") from error
    try:
        return text_format.Parse(text, message, descriptor_pool=protos.POOL)
    except (text_format.ParseError, RecursionError) as error:
        raise invalid_argument(f"Invalid protobuf file: '{path}': {error}") from error


def single_model(name: str, base_path: str) -> Any:
    """The config that `--model_name` and `--model_base_path` stand for."""
    config = protos.ModelServerConfig()
    config.model_config_list.config.add(name=name, base_path=base_path, model_platform=PLATFORM)
    return config


def validate(new: Any, old: Any | None) -> None:
    """Refuse a `ModelServerConfig` that may not replace `old` (None at the start).

    Raises:
        StatusError: with the original's code and text.
    """
    kind = new.WhichOneof("config")
    if kind is None and old is None:
        return  # nothing to serve yet; a later config may bring models
    if kind != "model_config_list":
        if old is None:
            raise invalid_argument("ModelServer does not yet support custom model config.")
        raise failed_precondition(
            "Cannot transition to requested config. It is only legal to transition from one "
            "ModelConfigList to another."
        )
    seen: set[str] = set()
    for model in new.model_config_list.config:
        if model.name in seen:
            raise invalid_argument(f"Illegal to list model {model.name} multiple times in config list")
        seen.add(model.name)
        if "\0" in model.base_path:
            raise invalid_argument(
                f"Expected model {model.name} to have a path without NUL characters; "
                f"got base_path()={model.base_path!r}"
            )
        if not Path(model.base_path).is_absolute():
            raise invalid_argument(
                f"Expected model {model.name} to have an absolute path or URI; "
                f"got base_path()={model.base_path}"
            )
    if old is not None:
        _check_platforms_kept(new, old)


def _check_platforms_kept(new: Any, old: Any) -> None:
    before = {model.name: platform_of(model) for model in old.model_config_list.config}
    for model in new.model_config_list.config:
        if model.name in before and platform_of(model) != before[model.name]:
            raise invalid_argument(
                f"Illegal to change a model's platform. For model {model.name} platform was "
                f"{before[model.name]} and new platform requested is {platform_of(model)}"
            )


def platform_of(model: Any) -> str:
    """The platform that a `ModelConfig` names, in the old way or the new."""
    if model.model_type:
        if model.model_platform:
            raise invalid_argument(
                "Illegal setting both ModelServerConfig::model_type (deprecated) and "
                "ModelServerConfig::model_platform."
            )
        if model.model_type != MODEL_TYPE_TENSORFLOW:
            raise invalid_argument(f"ModelServerConfig::model_type choice {model.model_type} not supported.")
        return PLATFORM
    if not model.model_platform:
        raise invalid_argument(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            "ModelServerConfig::model_platform."
        )
    return str(model.model_platform)


def entries(config: Any) -> dict[str, ModelEntry]:
    """The models of a validated config, by name; raises StatusError for a platform that is not served."""
    found = {}
    for model in config.model_config_list.config:
        platform = platform_of(model)
        if platform != PLATFORM:
            raise invalid_argument(f"Model {model.name} requests unsupported platform {platform}")
        found[model.name] = ModelEntry(
            model.name, Path(model.base_path), model.model_version_policy, dict(model.version_labels)
        )
    return found


LabelMap = Mapping[str, Mapping[str, int]]


def labels_after(
    config: Any,
    states: Mapping[str, Mapping[int, VersionState]],
    labels: LabelMap,
    *,
    allow_unavailable: bool,
) -> LabelMap:
    """The labels that `config` asks for: model -> label -> version.

    A label may point only to an available version; with `allow_unavailable`, a label that points
    nowhere yet (or to the same version already) may point to any.

    Raises:
        StatusError: FAILED_PRECONDITION; `labels` then stay in force.
    """
    new: dict[str, dict[str, int]] = {}
    for model in config.model_config_list.config:
        for label, version in model.version_labels.items():
            existing = labels.get(model.name, {}).get(label, version)
            at = states.get(model.name, {}).get(version)
            is_available = at is not None and at.state is State.AVAILABLE
            if not is_available and not (allow_unavailable and existing == version):
                raise failed_precondition(
                    f"Request to assign label to version {version} of model {model.name}, "
                    "which is not currently available for inference"
                )
            new.setdefault(model.name, {})[label] = version
    return new


def version_of_label(labels: LabelMap, model: str, label: str) -> int:
    """The version that `label` stands for; raises StatusError INVALID_ARGUMENT if none."""
    version = labels.get(model, {}).get(label)
    if version is None:
        raise unknown_label(label)
    return version


def unknown_label(label: str) -> StatusError:
    """What the original answers to a label that it does not know."""
    return invalid_argument(f"Unrecognized servable version label: {label}")
