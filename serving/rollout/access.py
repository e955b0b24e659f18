"""Where `sluice rollout …` finds rollouts: in a folder, in a cluster, or at a gateway that runs elsewhere."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

import httpx

from serving.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidInput,
    NotFound,
    SluiceError,
    Unavailable,
)
from serving.gateway_url import authorization, checked, for_command, key_refused, segment, unanswered
from serving.rollout.machine import Command, command
from serving.rollout.plan import Plan
from serving.rollout.record import Rollout, from_json
from serving.rollout.start import loaded, order, start
from serving.rollout.store import FileStore, Store, is_store

CLUSTER = "kubernetes://"

_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_TIMEOUT_S = 10.0
_BY = "the command line"
# A gateway looks at rollouts about once a second, and a new leader waits for the old one's lease to expire.
_OBEYED_WITHIN_S = 30.0
_ASK_EVERY_S = 0.2


class Access(Protocol):
    """What the commands need of wherever the rollouts are; each method raises as SluiceErrors do."""

    def start(self, model: str, to: int, plan: Plan | None) -> str:
        """Starts a rollout by a plan, or by the default one there; its id."""

    def order(self, model: str, what: Command) -> Rollout:
        """Gives a command; the rollout as it is then."""

    def load(self, model: str) -> Rollout | None:
        """The model's newest rollout, None if it never had one; FailedPrecondition if it is unreadable."""

    def models(self) -> list[str]:
        """The models that have, or had, a rollout; sorted."""

    def history(self, model: str) -> list[Rollout]:
        """The model's rollouts, oldest first."""


class StoreAccess:
    """Rollouts in a store that is within reach.

    Args:
        store: The store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def start(self, model: str, to: int, plan: Plan | None) -> str:
        """See `Access.start`."""
        return start(self._store, model, to, plan or Plan(), time.time()).id

    def order(self, model: str, what: Command) -> Rollout:
        """See `Access.order`."""
        return order(self._store, model, what, by=_BY, at=time.time())

    def load(self, model: str) -> Rollout | None:
        """See `Access.load`."""
        return loaded(self._store, model)

    def models(self) -> list[str]:
        """See `Access.models`."""
        return self._store.models()

    def history(self, model: str) -> list[Rollout]:
        """See `Access.history`."""
        return self._store.history(model)


class ClusterAccess:
    """Rollouts that are ModelRollout objects of a namespace, with the rights of whoever runs the command.

    It creates objects and writes `spec.command`, as `kubectl` would; the gateways decide what follows.

    Args:
        store: The objects.
        clock: The monotonic clock, in seconds.
        sleep: Waits for some seconds.
    """

    def __init__(
        self,
        store: ClusterStore,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._clock = clock
        self._sleep = sleep

    def start(self, model: str, to: int, plan: Plan | None) -> str:
        """See `Access.start`."""
        self._store.refresh()
        return self._store.create(model, to, plan or Plan())

    def order(self, model: str, what: Command) -> Rollout:
        """See `Access.order`; waits until a gateway has obeyed."""
        found = self.load(model)
        if found is None:
            raise NotFound(f'model "{model}" had no rollout yet that a gateway has looked at')
        command(found.state, what, found.clock_s, by=_BY)
        self._store.ask(found.id, what)
        deadline = self._clock() + _OBEYED_WITHIN_S
        while self._store.asked(found.id):
            if self._clock() >= deadline:
                raise Unavailable(
                    f"no gateway has obeyed within {_OBEYED_WITHIN_S:g} s; the command stays in ModelRollout "
                    f"{found.id} for the one that looks next"
                )
            self._sleep(_ASK_EVERY_S)
            self._store.refresh()
        after = next((each for each in self._store.history(model) if each.id == found.id), None)
        if after is None:
            raise NotFound(f"ModelRollout {found.id} was deleted before a gateway carried out the command")
        return after

    def load(self, model: str) -> Rollout | None:
        """See `Access.load`."""
        self._store.refresh()
        return loaded(self._store, model)

    def models(self) -> list[str]:
        """See `Access.models`."""
        self._store.refresh()
        return self._store.models()

    def history(self, model: str) -> list[Rollout]:
        """See `Access.history`."""
        self._store.refresh()
        return self._store.history(model)


class ClusterStore(Store, Protocol):
    """A store of objects in a cluster, which anybody with the rights can create."""

    def refresh(self) -> None:
        """Learns how all objects are now."""

    def create(self, model: str, version: int, plan: Plan) -> str:
        """Makes an object; its name."""

    def ask(self, name: str, what: Command) -> None:
        """Leaves a command in an object."""

    def asked(self, name: str) -> bool:
        """Whether a command is still in an object."""


class GatewayAccess:
    """Rollouts at a gateway, by its admin API over HTTP.

    Args:
        url: Where the gateway is.
        key: An API key or token with the scope `admin`; None if none is required.
        verify: How the gateway's certificate is checked: httpx's `verify`.

    Raises:
        InvalidInput: The URL or the key is not valid.
    """

    def __init__(self, url: str, key: str | None, verify: ssl.SSLContext | bool = True) -> None:
        self._client = httpx.Client(
            base_url=checked(url), timeout=_TIMEOUT_S, headers=authorization(key), verify=verify
        )
        self._url = url

    def start(self, model: str, to: int, plan: Plan | None) -> str:
        """See `Access.start`."""
        body = {"to": to} | ({} if plan is None else {"plan": plan.model_dump(mode="json")})
        return str(self._ask("POST", _path(model), itemgetter("id"), json=body))

    def order(self, model: str, what: Command) -> Rollout:
        """See `Access.order`."""
        self._ask("POST", _path(model, what))
        return self._whole(_path(model))

    def load(self, model: str) -> Rollout | None:
        """See `Access.load`."""
        try:
            return self._whole(_path(model))
        except NotFound:
            return None

    def models(self) -> list[str]:
        """See `Access.models`."""
        return list(self._ask("GET", _path(), _models))

    def history(self, model: str) -> list[Rollout]:
        """See `Access.history`."""
        found = self._ask("GET", _path(model, "history"), itemgetter("rollouts"))
        return [self._whole(_path(model, "history", each["id"])) for each in found]

    def _whole(self, path: str) -> Rollout:
        return from_json(self._ask("GET", path))

    def _ask(
        self, method: str, path: str, part: Callable[[Any], Any] = lambda whole: whole, **request: Any
    ) -> Any:
        """What the gateway answers, or a part of it; raises SluiceErrors."""
        try:
            answer = self._client.request(method, path, **request)
        except httpx.RequestError as error:
            raise self._unanswered(error, method) from error
        try:
            found = answer.json()
            if answer.is_success:
                return part(found)
            kind, text = str(found["type"]), str(found["detail"])
            if answer.status_code == httpx.codes.UNAUTHORIZED:
                told = key_refused("authorization" in self._client.headers)
                raise InvalidInput(f"the gateway at {self._url} refused: {told}")
        except (ValueError, KeyError, TypeError, AttributeError):
            kind, text = "", f"status {answer.status_code}, not what a Sluice gateway answers"
        kinds = (
            each for each in (FailedPrecondition, InvalidInput, NotFound) if kind.endswith(f":{each.kind}")
        )
        raise next(kinds, SluiceError)(f"the gateway at {self._url} refused: {text}")

    def _unanswered(self, error: httpx.RequestError, method: str) -> SluiceError:
        told = unanswered(self._client.base_url, error, _TIMEOUT_S)
        if isinstance(told, DeadlineExceeded) and method == "POST":
            return DeadlineExceeded(
                f"{told.message}; `sluice rollout status` says whether it was carried out"
            )
        return for_command(told, "is --gateway the right address?")


def _models(answer: Any) -> list[str]:
    # Absent if a gateway answers that did not tell of records that cannot be read.
    listed = (*answer["rollouts"], *answer.get("unreadable", ()))
    return sorted(str(each["model"]) for each in listed)


def _path(*parts: str) -> str:
    return "/".join(("/v1/rollouts", *map(segment, parts)))


def open_store(where: str) -> Access:
    """The rollouts in a folder, or under `kubernetes://NAMESPACE` those of a cluster.

    Raises:
        InvalidInput: No gateway has that folder, or no cluster can be found.
    """
    if not where.startswith(CLUSTER):
        folder = Path(where)
        if not is_store(folder):
            raise InvalidInput(
                f"{folder} is not a folder of rollouts; pass the one that a gateway has as --rollouts"
            )
        return StoreAccess(FileStore(folder))
    from serving.rollout.kubernetes import KubernetesStore
    from serving.rollout.model_rollout import cluster_client

    namespace = where.removeprefix(CLUSTER).rstrip("/")
    if not _NAMESPACE.fullmatch(namespace):
        raise InvalidInput(f'"{where}" names no namespace; write {CLUSTER}NAMESPACE, such as {CLUSTER}sluice')
    return ClusterAccess(KubernetesStore(cluster_client(namespace)))
