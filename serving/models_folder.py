"""The folder of models that `sluice serve` serves: which there are, at its start and later."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog

from serving.backends.pool import Pool
from serving.catalog import Catalog
from serving.errors import InvalidInput, SluiceError
from serving.processes.upstream import ConfigFile, Upstream, model_config
from serving.settings import Settings

_log = structlog.get_logger()

RELOAD_TIMEOUT_S = 60.0
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")  # of a model, or of a file of one; `lost+found` is none


def find_models(models_dir: Path, served: Collection[str] = ()) -> list[str]:
    """The names of the models in a folder: its sub-folders with at least one version, sorted.

    A sub-folder that cannot be read is a model only if it is among those that are `served` already.

    Raises:
        InvalidInput: there is no such folder, or it cannot be read.
    """
    try:
        if models_dir.exists() and not models_dir.is_dir():
            raise InvalidInput(f"{models_dir} is not a folder; it must hold a folder for each model")
        if not models_dir.is_dir():
            raise InvalidInput(
                f"there is no folder {models_dir}; train a model into it: "
                f"sluice train resnet --data digits --out {models_dir}"
            )
        return sorted(folder.name for folder in models_dir.iterdir() if _is_model(folder, served))
    except OSError as error:
        raise InvalidInput(f"the folder {models_dir} cannot be read: {error.strerror}") from error


def no_model(models_dir: Path) -> InvalidInput:
    """The error for a folder without models, which may itself be a model's, as for TensorFlow Serving."""
    folder = models_dir.absolute()
    model, above = folder, folder.parent
    if _is_version(folder):
        model, above = above, above.parent
    elif not any(_is_version(saved.parent) for saved in folder.glob("*/saved_model.pb")):
        train = f"train one: sluice train resnet --data digits --out {models_dir}"
        return InvalidInput(f"{models_dir} holds no model; {next(unserved(models_dir, ()), train)}")
    what = "the model" if model == folder else "a version of the model"
    return InvalidInput(
        f"{models_dir} is {what} {model.name}, and no folder of models; pass the one that {model.name} is in:"
        f" {above}"
    )


def unserved(models_dir: Path, models: Collection[str]) -> Iterator[str]:
    """For each thing next to the models in a folder that may be meant as a model, why it is not one.

    Such as a SavedModel that was exported there, a `.keras` file, or what only another user may read.
    """
    try:
        children = sorted(models_dir.iterdir())
    except OSError:  # reported where models are looked for
        return
    for child in children:
        if child.name in models or not _NAME.fullmatch(child.name):
            continue
        try:
            yield from _unpublished(child, models_dir)
        except FileNotFoundError:  # it went just now
            continue
        except OSError as error:
            yield f"{child} cannot be read, and is not served: {error.strerror}"


def _unpublished(child: Path, models_dir: Path) -> Iterator[str]:
    files = [child] if not child.is_dir() else list(child.iterdir())
    if child / "saved_model.pb" in files:
        yield (
            f"{child} is a SavedModel in no version's folder: move it to {child / '1'}, or publish it:"
            f" sluice publish {child} --out {models_dir}"
        )
    for file in files:
        if file.suffix == ".keras":
            yield f"{file} is not published: sluice publish {file} --out {models_dir}"


def _is_version(folder: Path) -> bool:
    return folder.name.isdecimal() and (folder / "saved_model.pb").is_file()


def _is_model(folder: Path, served: Collection[str]) -> bool:
    try:
        return folder.is_dir() and any(child.name.isdecimal() for child in folder.iterdir())
    except FileNotFoundError:  # it went just now
        return False
    except OSError:
        return folder.name in served


def first_config(settings: Settings, models: Sequence[str]) -> Any:
    """The config with which a model server starts: under rollouts, the serving version of each model.

    Raises:
        InvalidInput: under rollouts, a model has none.
    """
    config = model_config(settings.models_dir, models)
    if settings.rollout_store is None:
        return config
    from serving.rollout.published import published_in
    from serving.rollout.start import serving_version
    from serving.rollout.store import FileStore

    store = FileStore(settings.rollout_store)
    for entry in config.model_config_list.config:
        version = serving_version(store, entry.name)
        if version is None:
            version = max(published_in(settings.models_dir, entry.name), default=None)
        if version is None:
            raise InvalidInput(
                f"{settings.models_dir / entry.name} holds no version of a model to start with; train one "
                f"into {settings.models_dir}, or take {entry.name} out of the setting models"
            )
        entry.model_version_policy.specific.versions.append(version)
    return config


async def follow(upstream: Upstream, pool: Pool, catalog: Catalog, settings: Settings) -> None:
    """Serve models that appear in the folder later, for ever; a fixed list of models stays as it is.

    While the folder cannot be read, or the model server cannot be configured, the models stay as they are.
    """
    if settings.models or upstream.config is None:
        return
    told, mentioned = "", set[str]()
    while True:
        await asyncio.sleep(settings.status_interval_s)
        texts = await asyncio.to_thread(lambda: set(unserved(settings.models_dir, catalog.names())))
        for text in texts - mentioned:
            _log.warning(text)
        mentioned = texts
        try:
            await _take_models(upstream.config, pool, catalog, settings)
        except SluiceError as error:  # the next round tries again
            if error.message != told:
                _log.warning("cannot follow the folder of models; those there are stay", error=error.message)
            told = error.message
        else:
            told = ""


async def _take_models(config: ConfigFile, pool: Pool, catalog: Catalog, settings: Settings) -> None:
    # A folder may be on a network, and slow.
    found = await asyncio.to_thread(find_models, config.models_dir, catalog.names())
    if not found or found == catalog.names():
        return
    if settings.rollout_store is not None:  # the controller tells the model server
        catalog.set_models(found)
        return
    config.write_models(found)
    await pool.reload_config(model_config(config.models_dir, found), RELOAD_TIMEOUT_S)
    catalog.set_models(found)
    _log.info("the models changed", models=found)
