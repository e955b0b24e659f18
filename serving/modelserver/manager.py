"""Loads and unloads versions while requests are served.

`lifecycle.decide` says what to do; here it is done, on separate threads: a slow load never holds up a
request, nor another model's load. One lock guards the states; nothing slow happens under it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from serving.errors import without_frames
from serving.modelserver.failures import Failures
from serving.modelserver.lifecycle import Load, State, Unload, VersionState, decide
from serving.modelserver.niceness import step_back
from serving.modelserver.signature import Signature
from serving.modelserver.status import Code, StatusError, from_exception, not_found

logger = logging.getLogger(__name__)


class Servable(Protocol):
    """What a loader returns: signatures, and a graph behind them."""

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """By name."""

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        """Run the graph once: tensor name -> value in, the named tensors out; raises StatusError."""

    def close(self) -> None:
        """Free what it holds; called once, when no request uses it any more."""


Loader = Callable[[str, int, Path], Servable]


class Model(NamedTuple):
    """What a request runs against: one version of a model, while it is held."""

    name: str
    version: int
    servable: Servable


@dataclass(frozen=True)
class RetryPolicy:
    """How often a failed load is retried (negative: never), and how long to wait in between."""

    max_retries: int
    interval_s: float


@dataclass
class _Version:
    """One version of one model; `sequence` orders all changes of state."""

    at: VersionState
    sequence: int
    servable: Servable | None = None
    users: int = 0


class ModelManager:
    """The versions of all models, and their states.

    Args:
        load: makes a servable; raises to say that it cannot.
        retry: what to do when it raises.
        concurrent_loads: how many loads run at once.
    """

    def __init__(self, load: Loader, retry: RetryPolicy, concurrent_loads: int) -> None:
        self._load = load
        self._retry = retry
        self._slots = threading.Semaphore(concurrent_loads)
        self._changed = threading.Condition()
        self._models: dict[str, dict[int, _Version]] = {}
        self._wanted: dict[str, Mapping[int, Path]] = {}
        self._failed: dict[str, set[int]] = {}
        self._abandoned: set[tuple[str, int]] = set()  # still loading when they ceased to be wanted
        self._sequence = 0
        self._closing = False
        self._threads: set[threading.Thread] = set()

    # --- what is wanted ---------------------------------------------------------------------------

    def want(self, name: str, versions: Mapping[int, Path]) -> None:
        """Say which versions of `name` should serve; returns at once."""
        with self._changed:
            known = self._models.get(name, {})
            for number in (self._wanted.get(name, {}).keys() - versions.keys()) & known.keys():
                if known[number].at.state in (State.START, State.LOADING):
                    self._abandoned.add((name, number))
            self._wanted[name] = dict(versions)
            self._failed.setdefault(name, set()).intersection_update(versions)
            self._changed.notify_all()
            self._reconcile(name)

    def _reconcile(self, name: str) -> None:
        """Start what `decide` says; the lock is held."""
        if self._closing:
            return
        versions = self._models.setdefault(name, {})
        known = {number: version.at for number, version in versions.items()}
        for action in decide(self._wanted.get(name, {}), known, self._failed.get(name, set())):
            if isinstance(action, Load):
                self._move(name, action.version, State.START)
                self._start(self._bring_in, name, action)
            else:
                self._move(name, action.version, State.UNLOADING)
                self._start(self._let_go, name, action)

    def _start(self, target: Callable[..., None], name: str, action: Load | Unload) -> None:
        def work() -> None:
            step_back()  # and so do TensorFlow's threads, which are started by the load
            try:
                target(name, action)
            finally:
                with self._changed:
                    self._threads.discard(thread)
                    self._changed.notify_all()

        kind = type(action).__name__.lower()
        thread = threading.Thread(target=work, name=f"{kind}-{name}-{action.version}", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _move(self, name: str, number: int, state: State, error: StatusError | None = None) -> _Version:
        """Change a version's state; the lock is held."""
        self._sequence += 1
        versions = self._models.setdefault(name, {})
        version = versions.setdefault(number, _Version(VersionState(state), self._sequence))
        version.at = VersionState(state, error)
        version.sequence = self._sequence
        self._changed.notify_all()
        return version

    # --- loading and unloading, each on its own thread --------------------------------------------

    def _bring_in(self, name: str, action: Load) -> None:
        with self._changed:
            self._move(name, action.version, State.LOADING)
        logger.info("Loading servable: {name: %s version: %d} from %s", name, action.version, action.path)
        loaded, error = self._try_to_load(name, action)
        with self._changed:
            is_abandoned = (name, action.version) in self._abandoned
            self._abandoned.discard((name, action.version))
            path = self._wanted.get(name, {}).get(action.version, action.path)
            # If it is wanted again, from another folder by now, what was loaded is another version.
            servable = None if is_abandoned and path != action.path else loaded
            if servable is None:
                if not is_abandoned:  # otherwise it starts afresh if it is wanted again, or was meanwhile
                    self._failed.setdefault(name, set()).add(action.version)
                self._move(name, action.version, State.END, error)
            else:
                version = self._move(name, action.version, State.AVAILABLE)
                version.servable = servable
                logger.info(
                    "Successfully loaded servable version {name: %s version: %d}", name, action.version
                )
            self._reconcile(name)
        if loaded is not None and servable is None:
            loaded.close()

    def _try_to_load(self, name: str, action: Load) -> tuple[Servable | None, StatusError]:
        error = StatusError(Code.CANCELLED, "the version is no longer wanted")
        failures = Failures()
        for attempt in range(max(self._retry.max_retries, 0) + 1):
            if attempt and not self._still_wanted(name, action.version, self._retry.interval_s):
                break
            try:
                with self._slots:
                    return self._load(name, action.version, action.path), error
            except Exception as caught:
                error = without_frames(from_exception(caught))  # it is kept for as long as the version is
                if (text := failures.tell(str(error), time.monotonic())) is not None:
                    logger.error(  # noqa: TRY400 - its trace says nothing about the model's folder
                        "Loading servable: {name: %s version: %d} failed: %s", name, action.version, text
                    )
        else:
            logger.error(
                "Loading servable: {name: %s version: %d} is given up after %d tries, until its folder is "
                "removed and put back, or the server restarts",
                name,
                action.version,
                failures.tries,
            )
        return None, error

    def _still_wanted(self, name: str, number: int, wait_s: float) -> bool:
        """Wait before another attempt; False as soon as the version is no longer wanted."""

        def is_unwanted() -> bool:
            return self._closing or (name, number) in self._abandoned

        with self._changed:
            return not self._changed.wait_for(is_unwanted, timeout=max(wait_s, 0.0))

    def _let_go(self, name: str, action: Unload) -> None:
        with self._changed:
            version = self._models[name][action.version]
            self._changed.wait_for(lambda: version.users == 0)
            servable, version.servable = version.servable, None
        if servable is not None:
            servable.close()
        with self._changed:
            self._move(name, action.version, State.END)
            logger.info("Done unloading servable version {name: %s version: %d}", name, action.version)
            self._reconcile(name)

    # --- what is ----------------------------------------------------------------------------------

    def lease(self, name: str, number: int | None) -> Lease:
        """The available version `number` of `name` (None: the highest), kept from unloading while in use.

        Entering it raises StatusError NOT_FOUND, as the original words it.
        """
        return Lease(self, name, number)

    def take(self, name: str, number: int | None) -> tuple[_Version, Model]:
        """Find a version and count one more user; raises StatusError."""
        with self._changed:
            version, servable, chosen = self._find(name, number)
            version.users += 1
        return version, Model(name, chosen, servable)

    def give_back(self, version: _Version) -> None:
        """Count one user less of what `take` gave."""
        with self._changed:
            version.users -= 1
            if version.users == 0 and version.at.state is State.UNLOADING:
                self._changed.notify_all()

    def _find(self, name: str, number: int | None) -> tuple[_Version, Servable, int]:
        versions = self._models.get(name, {})
        candidates = sorted(versions, reverse=True) if number is None else [number]
        for candidate in candidates:
            version = versions.get(candidate)
            if version is not None and version.at.state is State.AVAILABLE and version.servable is not None:
                return version, version.servable, candidate
        request = f"Latest({name})" if number is None else f"Specific({name}, {number})"
        raise not_found(f"Servable not found for request: {request}")

    def states(self, name: str) -> dict[int, VersionState]:
        """Every version of `name` that was ever seen, highest first."""
        with self._changed:
            versions = self._models.get(name, {})
            return {number: versions[number].at for number in sorted(versions, reverse=True)}

    def sequence(self) -> int:
        """The number of the latest change, for `wait_for_models`."""
        with self._changed:
            return self._sequence

    def wait_for_models(
        self, names: set[str], since: int, is_cancelled: Callable[[], bool]
    ) -> dict[tuple[str, int], VersionState] | None:
        """Wait until each model has, after change `since`, a version that became available or failed.

        Returns:
            (model, version) -> what was reached; None if `is_cancelled` said so first.
        """
        while True:
            with self._changed:
                reached = {name: self._reached(name, since) for name in names}
                if all(found is not None for found in reached.values()):
                    return {(name, found[0]): found[1] for name, found in reached.items() if found}
                self._changed.wait(timeout=0.2)
                if self._closing:
                    return None
            if is_cancelled():
                return None

    def _reached(self, name: str, since: int) -> tuple[int, VersionState] | None:
        versions = self._models.get(name, {})
        for number in sorted(versions, reverse=True):
            version = versions[number]
            has_settled = version.at.state is State.AVAILABLE or version.at.error is not None
            if version.sequence > since and has_settled:
                return number, version.at
        return None

    def close(self, timeout_s: float) -> bool:
        """Start nothing more; wait for what is under way. False if something still is."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._threads, timeout=deadline - time.monotonic())


class Lease:
    """A version in use, for a `with`. A class, since a generator costs each request several times this."""

    __slots__ = ("_manager", "_name", "_number", "_version")

    def __init__(self, manager: ModelManager, name: str, number: int | None) -> None:
        self._manager, self._name, self._number = manager, name, number

    def __enter__(self) -> Model:
        """Take it; raises StatusError if it is not there."""
        self._version, model = self._manager.take(self._name, self._number)
        return model

    def __exit__(self, *_: object) -> None:
        """Let it go."""
        self._manager.give_back(self._version)
