"""Where rollouts are kept: the protocol of a store, and the store in a folder.

A save is a compare-and-set: it names the revision that it builds on, and fails with `Conflict` if another
controller saved first. Whoever decides saves before acting.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote

import structlog

from serving.errors import Conflict, InvalidInput
from serving.prediction import version_number
from serving.rollout.published import published_in
from serving.rollout.record import Rollout, proven
from serving.rollout.record_file import RecordFile, parsed, read, written

_log = structlog.get_logger()

_HISTORY = "history"
_MODELS_DIR = "models-dir"
# For a file's name, which may have 255 bytes, suffix included.
_MOST_CHARACTERS = 200


class Store(Protocol):
    """Keeps the newest rollout of each model, and those before it."""

    def load(self, model: str) -> Rollout | None:
        """The model's newest rollout, None if it never had one."""

    def unreadable(self, model: str) -> str | None:
        """Why the model's record cannot be read; None if it can, or if there is none.

        While it cannot, nothing about the model may change.
        """

    def save(self, rollout: Rollout) -> Rollout:
        """Saves the successor of `rollout.revision`; returns it with its new revision.

        Raises:
            Conflict: What is stored is not of that revision.
        """

    def models(self) -> list[str]:
        """The models that have, or had, a rollout; sorted."""

    def history(self, model: str) -> list[Rollout]:
        """The model's rollouts, oldest first; the last is the newest one."""

    def obey(self) -> None:
        """Carries out commands that people left in the store itself. Only the leader calls it."""

    def published(self, model: str) -> list[int]:
        """The published versions of a model, as far as can be seen; empty if that cannot be seen.

        Raises:
            OSError: They cannot be listed.
        """

    def pinned(self, model: str) -> int | None:
        """The version that serves a model which never had a rollout, or whose record cannot be read.

        None before it is pinned.
        """

    def pin(self, model: str, version: int) -> None:
        """Pins the version that serves a model which never had a rollout: newer ones need a rollout."""


class Files:
    """The file operations that a save consists of, each of which may fail or be the last of its process."""

    def write(self, path: Path, content: bytes) -> None:
        """Writes a new file and makes it durable."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        """Renames over what is there, atomically (POSIX rename)."""
        source.replace(target)

    def sync_folder(self, folder: Path) -> None:
        """Makes the folder's renames durable."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a folder's files say of a model: its record, and what is wrong with the newest file."""

    record: RecordFile | None = None
    damage: str | None = None

    @property
    def rollout(self) -> Rollout | None:
        """The rollout, None if there is none, or none that can be read."""
        return None if self.record is None else self.record.rollout


class FileStore:
    """Rollouts in a folder, for processes on one machine.

    `MODEL.json` is the newest state, `MODEL.previous.json` the one before it, `history/` holds the finished
    rollouts. What is unusual in a model's name is escaped as in a URL (`my%20model.json`).

    A save writes a temporary file, makes it durable, and renames it into place: after a crash at any point
    the newest file is the old state or the new one. If somebody truncates it or edits it wrongly, the state
    before it is used, and the log says so.

    Args:
        folder: Made if it is not there.
        files: The file operations; tests pass some that fail.

    Raises:
        InvalidInput: The folder cannot be made, or is not a folder.
    """

    def __init__(self, folder: Path, files: Files | None = None) -> None:
        self._folder = folder
        self._files = files or Files()
        self._history = folder / _HISTORY
        self._pins = folder / "pinned"
        self._models_dir: Path | None = None
        try:
            for each in (self._history, self._pins):
                each.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(
                f"rollouts cannot be stored in {folder}: {error.strerror or error}; pass a folder that can be"
                " created and written to"
            ) from error
        self._read: dict[str, RecordFile] = {}
        self._reported: dict[str, str] = {}

    def load(self, model: str) -> Rollout | None:
        """See `Store.load`."""
        return self._loaded(model).rollout

    def damage(self, model: str) -> str | None:
        """What is wrong with the model's newest file, None if nothing is."""
        return self._loaded(model).damage

    def unreadable(self, model: str) -> str | None:
        """See `Store.unreadable`."""
        loaded = self._loaded(model)
        return loaded.damage if loaded.rollout is None else None

    def _loaded(self, model: str) -> Loaded:
        newest = self._newest(model)
        try:
            record = self._read[model] = read(newest.read_bytes(), self._read.get(model))
            return Loaded(record)
        except FileNotFoundError:
            self._read.pop(model, None)
            return Loaded()
        except (OSError, InvalidInput) as error:
            damage = f"{newest}: {error}"
        with contextlib.suppress(OSError, InvalidInput):
            before = read(self._previous(model).read_bytes())
            told = f"the state before it serves (revision {before.rollout.revision})"
            self._report(model, f"{damage}; {told}")
            return Loaded(before, damage)
        self._report(model, f"{damage}; there is no state before it")
        return Loaded(None, damage)

    def _report(self, model: str, damage: str) -> None:
        """Logs a damage once, not at every look."""
        if self._reported.get(model) != damage:
            self._reported[model] = damage
            _log.error("a stored rollout cannot be read", model=model, damage=damage)

    def save(self, rollout: Rollout) -> Rollout:
        """See `Store.save`."""
        with self._locked(rollout.model):
            before = self._loaded(rollout.model).record
            expected = 0 if before is None or before.rollout.id != rollout.id else before.rollout.revision
            if rollout.revision != expected:
                raise Conflict(
                    f'the rollout of model "{rollout.model}" is at revision {expected}, not '
                    f"{rollout.revision}: somebody else moved it"
                )
            if before is not None and before.rollout.id != rollout.id:
                if not before.rollout.finished:
                    raise Conflict(
                        f'model "{rollout.model}" has a rollout that is {before.rollout.state.phase.value}: '
                        "abort it, or wait for its end"
                    )
                self._replace(self._history / f"{before.rollout.id}.json", before.content)
            if before is not None:
                self._replace(self._previous(rollout.model), before.content)
            saved = replace(rollout, revision=rollout.revision + 1)
            self._replace(self._newest(rollout.model), written(saved, before))
            self._reported.pop(rollout.model, None)
            return saved

    def models(self) -> list[str]:
        """See `Store.models`. Files with other names, such as an editor's, are skipped."""
        names = (path.name.removesuffix(".json") for path in self._folder.glob("*.json"))
        return sorted(unquote(name) for name in names if _is_file_name(name))

    def history(self, model: str) -> list[Rollout]:
        """See `Store.history`."""
        found = []
        for path in self._history.glob("*.json"):
            with contextlib.suppress(OSError, InvalidInput):
                found.append(read(path.read_bytes()).rollout)
        newest = self.load(model)
        by_id = {rollout.id: rollout for rollout in found if rollout.model == model}
        if newest is None:
            return sorted(by_id.values(), key=_started_at)
        by_id.pop(newest.id, None)
        # The newest one is last, whatever the clock said when it began.
        return [*sorted(by_id.values(), key=_started_at), newest]

    def obey(self) -> None:
        """See `Store.obey`: commands come as saves, there is nothing to do."""

    def note_models(self, models_dir: str) -> None:
        """Records where the models' folders are, also for other processes that start rollouts."""
        self._models_dir = Path(models_dir)
        with contextlib.suppress(OSError):  # as on a full disk; gateways still notice a missing version
            self._replace(self._folder / _MODELS_DIR, os.fsencode(models_dir))

    def published(self, model: str) -> list[int]:
        """See `Store.published`."""
        if self._models_dir is not None:
            return published_in(self._models_dir, model)
        try:
            noted = (self._folder / _MODELS_DIR).read_bytes()
        except FileNotFoundError:  # no gateway has run with this folder
            return []
        return published_in(Path(os.fsdecode(noted)), model)

    def pinned(self, model: str) -> int | None:
        """See `Store.pinned`. A damaged record may still name the version, and is newer than the pin."""
        for record in (self._newest(model), self._previous(model)):
            with contextlib.suppress(OSError, InvalidInput):
                version = proven(parsed(record.read_bytes()))
                if version is not None:
                    return version
        path = self._pins / _file_name(model)
        try:
            return version_number(path.read_text().strip())
        except FileNotFoundError:
            return None
        except (InvalidInput, UnicodeDecodeError) as error:
            # Not None: the newest version would then be pinned, which no rollout has let in.
            raise InvalidInput(f"{path} holds no version; write the one that serves into it") from error

    def pin(self, model: str, version: int) -> None:
        """See `Store.pin`."""
        self._replace(self._pins / _file_name(model), f"{version}\n".encode())

    def _newest(self, model: str) -> Path:
        return self._folder / f"{_file_name(model)}.json"

    def _previous(self, model: str) -> Path:
        return self._folder / f"{_file_name(model)}.previous.json"

    def _replace(self, path: Path, content: bytes) -> None:
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._files.write(temporary, content)
            self._files.replace(temporary, path)
            self._files.sync_folder(path.parent)
        except Exception:
            temporary.unlink(missing_ok=True)
            raise

    @contextlib.contextmanager
    def _locked(self, model: str) -> Iterator[None]:
        """Keeps other processes from comparing between our compare and our set."""
        descriptor = os.open(self._folder / f".{_file_name(model)}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def is_store(folder: Path) -> bool:
    """Whether a `FileStore` was ever made in a folder."""
    return (folder / _HISTORY).is_dir()


def _started_at(rollout: Rollout) -> float:
    return rollout.started_at


def _file_name(model: str) -> str:
    """The name of a model's files; raises InvalidInput for what cannot be a model's name."""
    with contextlib.suppress(UnicodeEncodeError):
        name = quote(model, safe="")
        if name.startswith("."):
            name = "%2E" + name[1:]
        if name.endswith(".previous"):
            name = name.removesuffix(".previous") + "%2Eprevious"
        if "/" not in model and 0 < len(name) <= _MOST_CHARACTERS:
            return name
    raise InvalidInput(f"{model[:300]!r} cannot be the name of a model whose rollouts are kept in files")


def _is_file_name(name: str) -> bool:
    with contextlib.suppress(InvalidInput):
        return _file_name(unquote(name)) == name
    return False
