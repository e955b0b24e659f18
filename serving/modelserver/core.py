"""The server without its transports: takes configs, finds models for requests, reports statuses.

What the original calls `ServerCore`: validate, store, labels, sources, in that order.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from serving.modelserver import config as configs
from serving.modelserver import source
from serving.modelserver.lifecycle import State, VersionState
from serving.modelserver.manager import Lease, ModelManager
from serving.modelserver.status import Code, StatusError, invalid_argument, not_found

logger = logging.getLogger(__name__)

LOOK_S = 0.2  # how often a reload that waits for another checks that its caller still waits


class ServerCore:
    """The configured models.

    Args:
        manager: brings their versions in.
        allow_labels_for_unavailable: `--allow_version_labels_for_unavailable_models`.
        poll_wait_s: `--file_system_poll_wait_seconds`: whether folders are looked at for every new config
            (more than 0), only for the first one (0), or never (less).
        is_tolerant: go on with the other models if one's folder is missing; the original does not.
    """

    def __init__(
        self,
        manager: ModelManager,
        *,
        allow_labels_for_unavailable: bool = False,
        poll_wait_s: int = 1,
        is_tolerant: bool = False,
    ) -> None:
        self._manager = manager
        self._allow_unavailable = allow_labels_for_unavailable
        self._poll_wait_s = poll_wait_s
        self._is_tolerant = is_tolerant
        self._reloading = threading.Lock()
        self._wanting = threading.Lock()
        self._config: Any | None = None
        self._entries: dict[str, configs.ModelEntry] = {}
        self._labels: configs.LabelMap = {}

    def reload(
        self, new: Any, is_cancelled: Callable[[], bool] = lambda: False, *, is_waiting: bool = True
    ) -> None:
        """Take over a `ModelServerConfig`, and wait until its new models are available.

        Args:
            new: the config.
            is_cancelled: whether nobody waits any more.
            is_waiting: False returns before anything has loaded.

        Raises:
            StatusError: the config is refused, or a new model did not become available. As in the
                original, the config stays in force in the second case.
        """
        with self._turn(is_cancelled):
            if new.WhichOneof("config") is None and self._config is None:
                logger.info("Taking no action for empty config.")
                return
            is_first = self._config is None
            entries = self._store(new)
            since = self._manager.sequence()
            added = self._take_over(entries)
            if self._poll_wait_s > 0 or (is_first and self._poll_wait_s == 0):
                self.poll()
            else:
                logger.warning("No folder is read: --file_system_poll_wait_seconds=%d", self._poll_wait_s)
            if is_waiting:
                self._await(added, since, is_cancelled, "servable(s)" if is_first else "model(s)")
            logger.info("Finished adding/updating models")

    def _store(self, new: Any) -> dict[str, configs.ModelEntry]:
        """Put a config and its labels into force; returns its models.

        Raises StatusError for a config that is refused, and, once it is stored, for its labels.
        """
        configs.validate(new, self._config)
        entries = configs.entries(new)
        self._config = new
        names = [model.name for model in new.model_config_list.config]
        states = {name: self._manager.states(name) for name in names}
        self._labels = configs.labels_after(
            new, states, self._labels, allow_unavailable=self._allow_unavailable
        )
        return entries

    def _take_over(self, entries: dict[str, configs.ModelEntry]) -> set[str]:
        """Drop the models that a config leaves out; returns those that are new, by name."""
        added, removed = entries.keys() - self._entries.keys(), self._entries.keys() - entries.keys()
        logger.info("Adding/updating models.")
        with self._wanting:
            self._entries = entries
            for name in removed:
                self._manager.want(name, {})
        return added

    @contextmanager
    def _turn(self, is_cancelled: Callable[[], bool]) -> Iterator[None]:
        """One reload at a time; raises StatusError for one whose caller gives up before its turn comes.

        Otherwise it would hold a thread while another one runs, and come into force after newer ones.
        """
        while not self._reloading.acquire(timeout=LOOK_S):
            if is_cancelled():
                raise StatusError(Code.CANCELLED, "The wait for another reload ended before it was done")
        try:
            yield
        finally:
            self._reloading.release()

    def _await(self, names: set[str], since: int, is_cancelled: Callable[[], bool], noun: str) -> None:
        reached = self._manager.wait_for_models(names, since, is_cancelled)
        if reached is None:
            raise StatusError(Code.CANCELLED, "The wait for new models ended before they were available")
        failed = {key: at for key, at in reached.items() if at.state is not State.AVAILABLE}
        if failed:
            parts = "".join(
                f"{{{{name: {name} version: {version}}}{_due_to(at)}}}, "
                for (name, version), at in sorted(failed.items())
            )
            raise StatusError(Code.UNKNOWN, f"{len(failed)} {noun} did not become available: {{{parts}}}")

    def poll(self) -> None:
        """Look at every model's folder once; unless tolerant, without effect while one of them is missing."""
        with self._wanting:  # otherwise a reload, or what another look found, might be undone
            found = {}
            for entry in self._entries.values():
                wanted = source.look(entry)
                if wanted is not None:
                    found[entry.name] = wanted
                elif not self._is_tolerant:
                    return
            for name, versions in found.items():
                self._manager.want(name, versions)

    def is_configured(self, name: str) -> bool:
        """Whether there is a model of this name, be it available or not."""
        return name in self._entries

    def version_of(self, spec: Any) -> int | None:
        """The version that a `ModelSpec` asks for; None for the latest. Raises StatusError."""
        if not spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        choice = spec.WhichOneof("version_choice")
        if choice == "version_label":
            return configs.version_of_label(self._labels, spec.name, spec.version_label)
        return int(spec.version.value) if choice == "version" else None

    def model(self, spec: Any) -> Lease:
        """The model that a `ModelSpec` asks for, kept from unloading while in use; raises StatusError."""
        return self._manager.lease(spec.name, self.version_of(spec))

    def statuses(self, spec: Any) -> dict[int, VersionState]:
        """Version -> state, of the version that a `ModelSpec` names, or of all. A label is ignored."""
        states = self._manager.states(spec.name)
        if spec.WhichOneof("version_choice") == "version":
            number = int(spec.version.value)
            if number not in states:
                raise not_found(f"Could not find version {number} of model {spec.name}")
            return {number: states[number]}
        if not states:
            raise not_found(f"Could not find any versions of model {spec.name}")
        return states


def _due_to(at: VersionState) -> str:
    return f" due to error: {at.error}" if at.error is not None else ""
