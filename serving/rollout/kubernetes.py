"""Rollouts as `ModelRollout` objects of a Kubernetes cluster.

People create a ModelRollout (`kubectl apply`); its status holds the whole record, and what `kubectl get`
shows. Writes name the resourceVersion that they build on, so the API server detects conflicts. Objects are
followed by a watch; one that drops, or is too old (410 Gone), begins again with a list.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn, cast

import httpx2
import structlog
from lightkube import Client
from lightkube.core.exceptions import ApiError
from lightkube.types import PatchType

from serving.errors import Conflict, FailedPrecondition, SluiceError, Unavailable
from serving.rollout.machine import FINISHED, Command, Phase, command
from serving.rollout.model_rollout import (
    WATCH_S,
    ModelRollout,
    age_of,
    new_object,
    order_of,
    state_of,
    with_status,
)
from serving.rollout.plan import Plan
from serving.rollout.record import Rollout, check_candidate, from_json

_log = structlog.get_logger()

_PAUSE_S = 1.0
# What the API server answers when it cannot be reached or is not well.
_FAILURES = (httpx2.HTTPError, OSError)


class KubernetesStore:
    """The ModelRollouts of one namespace. `follow` runs in a thread of its own until `close`.

    Args:
        client: The API client, for this namespace.
        now: The time of day, in Unix seconds.
    """

    def __init__(self, client: Client, now: Callable[[], float] = time.time) -> None:
        self._client = client
        self._now = now
        self._lock = threading.Lock()
        self._objects: dict[str, Any] = {}
        self._pins: dict[str, int] = {}
        self._outcomes: dict[str, tuple[Any, int]] = {}
        self._reported: dict[str, str] = {}
        self._listed = threading.Event()
        self._closed = threading.Event()

    def follow(self) -> None:
        """Keeps what is known of the objects up to date, until `close`."""
        while not self._closed.is_set():
            try:
                self._follow_once()
            except ApiError as error:
                if error.status.code != 410:
                    _log.warning("the watch of ModelRollouts failed", error=str(error))
                    self._closed.wait(_PAUSE_S)
            except _FAILURES as error:
                _log.warning("the API server cannot be reached", error=str(error))
                self._closed.wait(_PAUSE_S)
            except Exception as error:  # such as a proxy's page instead; the thread must not end unnoticed
                _log.warning("the API server's answer makes no sense", error=repr(error)[:500])
                self._closed.wait(_PAUSE_S)

    def _follow_once(self) -> None:
        """One list and one watch; returns when the server ends the watch."""
        version = self._list()
        each: Any
        for kind, each in self._client.watch(ModelRollout, resource_version=version, server_timeout=WATCH_S):
            with self._lock:
                if kind == "DELETED":
                    self._note_outcome(each)
                    self._objects.pop(each.metadata.name, None)
                else:
                    self._keep(each)
            if self._closed.is_set():
                return

    def _list(self) -> str | None:
        """Learns of all objects; the version of the list."""
        listed = self._client.list(ModelRollout)
        found: list[Any] = list(listed)
        with self._lock:
            self._objects = {each.metadata.name: each for each in found}
            for each in found:
                self._note_outcome(each)
        self._listed.set()
        return listed.resourceVersion

    def refresh(self) -> None:
        """Reads all objects as they are now, for those who do not follow them; raises Unavailable."""
        self._ask(self._list)

    def close(self) -> None:
        """Ends `follow` at its next event."""
        self._closed.set()

    def _keep(self, each: Any) -> None:
        """Notes an object unless a newer one is known: answers and events overtake each other."""
        known = self._objects.get(each.metadata.name)
        if known is None or order_of(each) >= order_of(known):
            self._objects[each.metadata.name] = each
            self._note_outcome(each)

    def _note_outcome(self, each: Any) -> None:
        """Remembers which version an object has proven, for when the object is gone.

        Deleting a finished one is not meant to undo it. If one under way is deleted, the stable version
        stays: its candidate has proved nothing.
        """
        proven, model = (each.status or {}).get("stableVersion"), str(each.spec["model"])
        if proven is None:
            return
        before = self._outcomes.get(model)
        if before is None or age_of(each) >= before[0]:
            self._outcomes[model] = age_of(each), int(proven)

    def _of(self, model: str) -> list[Any]:
        """A model's objects, oldest first.

        Raises:
            Unavailable: The API server could not be reached yet.
        """
        if not self._listed.wait(_PAUSE_S):
            raise Unavailable("the API server of the cluster has not answered yet")
        with self._lock:
            found = [each for each in self._objects.values() if each.spec["model"] == model]
        return sorted(found, key=age_of)

    def load(self, model: str) -> Rollout | None:
        """The oldest rollout that is not finished, else the newest; see `Store.load`."""
        rollouts = self.history(model)
        return next((each for each in rollouts if not each.finished), rollouts[-1] if rollouts else None)

    def unreadable(self, model: str) -> str | None:
        """See `Store.unreadable`; of the rollouts that have begun, it is about the one for `load`."""
        begun = [each for each in self._of(model) if state_of(each) is not None]
        if not begun:
            return None
        under_way = (each for each in begun if each.status.get("phase") not in FINISHED)
        due = next(under_way, begun[-1])
        if self._rollout(due, None) is not None:
            return None
        return f"ModelRollout {due.metadata.name}: {self._reported[due.metadata.name]}"

    def models(self) -> list[str]:
        """See `Store.models`."""
        if not self._listed.wait(_PAUSE_S):
            raise Unavailable("the API server of the cluster has not answered yet")
        with self._lock:
            return sorted({str(each.spec["model"]) for each in self._objects.values()})

    def history(self, model: str) -> list[Rollout]:
        """See `Store.history`; an object that nobody has looked at yet is pending."""
        found: list[Rollout] = []
        stable = self.pinned(model)
        for each in self._of(model):
            rollout = self._rollout(each, stable)
            if rollout is not None:
                found.append(rollout)
                if rollout.finished:
                    stable = rollout.candidate if rollout.state.phase is Phase.PROMOTED else rollout.stable
        return found

    def _rollout(self, each: Any, stable: int | None) -> Rollout | None:
        name = each.metadata.name
        state = state_of(each)
        try:
            if state is not None:
                return from_json(state)
            if stable is None:
                return None
            plan = Plan.model_validate(each.spec.get("plan") or {})
            started = each.metadata.creationTimestamp.timestamp()
            return Rollout(name, each.spec["model"], stable, int(each.spec["version"]), plan, started)
        except (SluiceError, ValueError, KeyError) as error:
            self._report(each, str(error))
            return None

    def _report(self, each: Any, error: str) -> None:
        """Logs once, not at every look, that an object cannot be read."""
        name = each.metadata.name
        if self._reported.get(name) == error:
            return
        self._reported[name] = error
        follows = "it is passed over"
        if state_of(each) is not None:
            follows = "the model stays as it is until somebody mends the object's status, or deletes it"
        _log.error("a ModelRollout cannot be read", name=name, error=error, follows=follows)

    def save(self, rollout: Rollout) -> Rollout:
        """Writes the object's status; see `Store.save`."""
        with self._lock:
            known = self._objects.get(rollout.id)
        if known is None:
            raise FailedPrecondition("in a cluster a rollout begins as a ModelRollout object; make one")
        stored = (known.status or {}).get("state")
        if (stored or {}).get("revision", 0) != rollout.revision:
            raise Conflict(f"ModelRollout {rollout.id} was moved by somebody else")
        saved = replace(rollout, revision=rollout.revision + 1)
        answer = self._ask(lambda: self._client.replace(with_status(known, saved)))
        with self._lock:
            self._keep(answer)
        return saved

    def create(self, model: str, version: int, plan: Plan) -> str:
        """Creates a ModelRollout, with the rights of whoever runs this; its name. Call `refresh` first.

        Raises:
            InvalidInput: The version cannot be one.
            Conflict: The model has one that is not finished.
            Unavailable: The API server cannot be reached, or refuses.
        """
        check_candidate(version)
        for each in self._of(model):
            phase = (each.status or {}).get("phase", Phase.PENDING.value)
            if phase not in FINISHED:
                raise Conflict(
                    f'model "{model}" has ModelRollout {each.metadata.name} that is {phase}: abort it, or '
                    "wait for its end"
                )
        made = new_object(model, version, plan)
        answer: Any = self._ask(lambda: self._client.create(made))
        with self._lock:
            self._keep(answer)
        return str(answer.metadata.name)

    def ask(self, name: str, what: Command) -> None:
        """Writes a command into an object; the gateway that decides obeys it at its next look."""
        self._patch(name, what)

    def asked(self, name: str) -> bool:
        """Whether a command is in an object that nobody has obeyed yet, as far as is known here."""
        with self._lock:
            found = self._objects.get(name)
        return found is not None and bool(found.spec.get("command"))

    def obey(self) -> None:
        """Carries out what people wrote into `spec.command`, once, and clears it. Only the leader calls it.

        Raises:
            Unavailable: One of the objects could not be written; the commands of the others were carried out.
        """
        with self._lock:
            asked = [each for each in self._objects.values() if each.spec.get("command")]
        failures = []
        for each in asked:
            name = each.metadata.name
            try:
                self._obey(name, each.spec["model"], cast("Command", each.spec["command"]))
            except Conflict:
                continue
            except Unavailable as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _obey(self, name: str, model: str, what: Command) -> None:
        try:
            self._carry_out(name, model, what)
        except FailedPrecondition as error:
            _log.warning("a command of a ModelRollout makes no sense", name=name, error=error.message)
        self._patch(name, None)

    def _carry_out(self, name: str, model: str, what: Command) -> None:
        rollout = self.load(model)
        if rollout is None or rollout.id != name:
            raise FailedPrecondition("it is not the rollout under way; delete it if it is not to come")
        after = command(rollout.state, what, rollout.clock_s, by="the ModelRollout")
        self.save(rollout.moved(after, None, self._now()))

    def _patch(self, name: str, what: Command | None) -> None:
        """Writes a command into an object, or removes it."""
        patch = {"spec": {"command": what}}
        answer = self._ask(lambda: self._client.patch(ModelRollout, name, patch, patch_type=PatchType.MERGE))
        with self._lock:
            self._keep(answer)

    def published(self, model: str) -> list[int]:  # noqa: ARG002 - a store's signature
        """See `Store.published`: a cluster's store cannot see the folder of models."""
        return []

    def pinned(self, model: str) -> int | None:
        """What the last rollout left, or else the version that served when the model was first seen here."""
        outcome = self._outcomes.get(model)
        return self._pins.get(model) if outcome is None else outcome[1]

    def pin(self, model: str, version: int) -> None:
        """See `Store.pin`. A record names its own stable version, so this need not outlive the process."""
        self._pins[model] = version

    @staticmethod
    def _ask(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except ApiError as error:
            _raise(error)
        except _FAILURES as error:
            raise Unavailable(f"the API server of the cluster cannot be reached: {error}") from error


def _raise(error: ApiError) -> NoReturn:
    if error.status.code == 409:
        raise Conflict(f"somebody else changed it first: {error.status.message}") from error
    raise Unavailable(f"the API server of the cluster refused: {error.status.message}") from error
