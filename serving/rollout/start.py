"""Starts rollouts, and hands people's commands to those under way."""

from __future__ import annotations

import re
import secrets
from contextlib import suppress

from serving.errors import Conflict, FailedPrecondition, NotFound
from serving.rollout.machine import Command, Phase, command
from serving.rollout.plan import Plan
from serving.rollout.record import Rollout, check_candidate
from serving.rollout.store import Store


def serving_version(store: Store, model: str) -> int | None:
    """The version that serves a model now, as far as the store knows."""
    last = store.load(model)
    if last is None:
        return store.pinned(model)
    return last.candidate if last.state.phase is Phase.PROMOTED else last.stable


def start(store: Store, model: str, to: int, plan: Plan, at: float) -> Rollout:
    """Stores a new rollout of a model to a version; the controller takes it from there.

    Raises:
        NotFound: The store knows nothing of this model: no gateway has served it with this store. Or, as far
            as can be seen, no such version is published.
        Conflict: The model has a rollout that is not finished, or serves that version.
        FailedPrecondition: Its record cannot be read: nobody knows which version is proven.
        InvalidInput: `to` is not a version.
    """
    check_candidate(to)
    check_readable(store, model)
    stable = serving_version(store, model)
    if stable is None:
        there = ", ".join(store.models()) or "none"
        raise NotFound(f'no gateway has served a model "{model}" with this store yet; it knows: {there}')
    running = store.load(model)
    if running is not None and not running.finished:
        raise Conflict(
            f'model "{model}" has a rollout to version {running.candidate} that is '
            f"{running.state.phase.value}: abort it, or wait for its end"
        )
    if to == stable:
        raise Conflict(f'version {to} of model "{model}" is the one that serves')
    _check_there(store, model, to)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", model).lstrip("-.") or "model"
    id_ = f"{name}-{to}-{int(at)}-{secrets.token_hex(3)}"
    return store.save(Rollout(id_, model, stable, to, plan, at))


def _check_there(store: Store, model: str, version: int) -> None:
    with suppress(OSError):  # this process may see less than the gateways, which check it, too
        there = store.published(model)
        if there and version not in there:
            known = ", ".join(map(str, there))
            raise NotFound(f'model "{model}" has no version {version} to be loaded; there are: {known}')


def check_readable(store: Store, model: str) -> None:
    """Raises FailedPrecondition, which says why, if the record of the model's rollout cannot be read."""
    why = store.unreadable(model)
    if why is not None:
        raise FailedPrecondition(
            f'what is stored of model "{model}" cannot be read, and it stays as it is: repair the record, or '
            f"delete it: {why}"
        )


def loaded(store: Store, model: str) -> Rollout | None:
    """The model's newest rollout, for callers that show it or change it; None if it never had one.

    Raises:
        FailedPrecondition: Its record cannot be read; the message says why.
    """
    check_readable(store, model)
    return store.load(model)


# A controller saves about once a second: a command that collides with it tries again.
_ATTEMPTS = 10


def order(store: Store, model: str, what: Command, *, by: str, at: float) -> Rollout:
    """Stores a person's command to a rollout; returns the rollout as it is then.

    Raises:
        NotFound: The model had no rollout.
        FailedPrecondition: The rollout is not where that makes sense, or its record cannot be read.
        Conflict: Others kept changing it.
    """
    check_readable(store, model)
    for attempt in range(_ATTEMPTS):
        found = store.load(model)
        if found is None:
            raise NotFound(f'model "{model}" had no rollout yet')
        after = command(found.state, what, found.clock_s, by=by)
        try:
            return store.save(found.moved(after, None, at))
        except Conflict:
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")
