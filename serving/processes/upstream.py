"""What is behind a gateway: replicas, their models, and the config of a model server of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from google.protobuf import text_format

from serving import protos
from serving.errors import Unavailable


def model_config(models_dir: Path, names: Iterable[str]) -> Any:
    """A ModelServerConfig that serves the latest version of each named model of a folder."""
    config = protos.ModelServerConfig()
    for name in names:
        config.model_config_list.config.add(
            name=name, base_path=str((models_dir / name).resolve()), model_platform="tensorflow"
        )
    return config


def absolute(models_dir: Path | str) -> str:
    """Where replicas find the models' folders, as their config names it: a path, or a bucket's URL."""
    where = str(models_dir)
    return where.rstrip("/") if "://" in where else str(Path(where).resolve())


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The file that a model server reads its models from as it starts.

    Attributes:
        path: the file.
        models_dir: the folder with a folder for each model.
    """

    path: Path
    models_dir: Path

    def write_models(self, names: Iterable[str]) -> None:
        """Have the next start serve the latest version of each of these models; raises as `write` does."""
        self.write(model_config(self.models_dir, names))

    def write(self, config: Any) -> None:
        """Have the next start read this ModelServerConfig; several workers may write the same at once.

        Raises:
            Unavailable: it cannot be written, as on a full disk; the previous one stays.
        """
        written = self.path.with_suffix(f".{os.getpid()}")
        try:
            written.write_text(text_format.MessageToString(config))
            written.replace(self.path)
        except OSError as error:
            written.unlink(missing_ok=True)
            raise Unavailable(
                f"the model server's config {self.path} cannot be written: {error.strerror}"
            ) from error


@dataclass(frozen=True, slots=True)
class Upstream:
    """What is behind a gateway.

    Attributes:
        replicas: addresses, as in the setting.
        models: the names of the models.
        models_dir: where the replicas find the models' folders; a string where it may be a bucket's URL.
        config: of a model server that was started for this gateway; None: others run the replicas.
    """

    replicas: tuple[str, ...]
    models: tuple[str, ...]
    models_dir: Path | str
    config: ConfigFile | None = None

    def as_json(self) -> dict[str, Any]:
        """For `from_json`, in another process."""
        return {
            "replicas": self.replicas,
            "models": self.models,
            "models_dir": str(self.models_dir),
            "config": None if self.config is None else str(self.config.path),
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """What `as_json` gave."""
        models_dir = found["models_dir"]
        config = None if found["config"] is None else ConfigFile(Path(found["config"]), Path(models_dir))
        return cls(tuple(found["replicas"]), tuple(found["models"]), models_dir, config)
