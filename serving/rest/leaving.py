"""Clients who leave before their answer: the work on their requests is cancelled.

uvicorn tells an application so only when it asks for the next message, which it does not do while it waits
for a replica. Only what opts in (`cancel_if_left`) is cancelled: what changes something is finished.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Scope


class Client:
    """The one at the other end of a connection.

    Attributes:
        left: whether the connection is gone.
    """

    __slots__ = ("_tasks", "left")

    def __init__(self) -> None:
        self.left = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def wait_with(self, task: asyncio.Task[Any]) -> None:
        """Cancel this task if the client leaves."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def leave(self) -> None:
        """The connection is gone."""
        self.left = True
        for task in tuple(self._tasks):
            task.cancel()


def client_of(scope: Scope) -> Client | None:
    """Whose request it is, where that is known."""
    found: Client | None = scope["state"].get("client")
    return found


def cancel_if_left(scope: Scope) -> None:
    """Have the current task cancelled if the request's client leaves."""
    client, task = client_of(scope), asyncio.current_task()
    if client is not None and task is not None:
        client.wait_with(task)
