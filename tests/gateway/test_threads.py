"""Work on threads beside the event loop: who gets it, and what is held for one who has left."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest

from serving.threads import Threads
from tests.support.fake_replica import FakeReplica, running
from tests.support.gateways import gateway_over
from tests.support.http import PATH, PNG, grey_png


class Body:
    """What a caller has sent."""


async def test_work_is_done_on_a_thread_and_its_error_reaches_the_caller() -> None:
    threads = Threads(2, "parse")
    assert await threads.run(lambda first, second: (first, second), 1, "b") == (1, "b")
    assert (await threads.run(threading.current_thread)).name.startswith("parse")
    with pytest.raises(ZeroDivisionError):
        await threads.run(divmod, 1, 0)
    threads.close()


async def test_what_waits_for_a_thread_is_let_go_and_not_done_once_its_caller_has_left() -> None:
    threads, opened, begun = Threads(1, "parse"), threading.Event(), asyncio.Event()
    loop, done = asyncio.get_running_loop(), list[Any]()

    def block() -> None:
        loop.call_soon_threadsafe(begun.set)
        assert opened.wait(60)

    def leaving(body: Body) -> asyncio.Task[Any]:
        return asyncio.create_task(threads.run(done.append, body))

    first = asyncio.create_task(threads.run(block))
    await begun.wait()
    body = Body()
    held, task = weakref.ref(body), leaving(body)
    del body
    stays = asyncio.create_task(threads.run(done.append, "stays"))
    await asyncio.sleep(0)  # both wait behind the first
    assert held() is not None
    task.cancel()
    await asyncio.wait([task])
    del task
    gc.collect()
    assert held() is None
    opened.set()
    await asyncio.gather(first, stays)
    assert done == ["stays"]
    threads.close()


async def test_a_gateway_that_has_ended_leaves_no_thread_behind() -> None:
    others = set(threading.enumerate())
    async with running(FakeReplica()) as fake, gateway_over(fake) as (up, client):
        assert (await client.post(PATH, content=grey_png(0), headers=PNG)).status_code == 200
        await up.gateway.in_thread(int)
        names = {thread.name.partition("-")[0].partition("_")[0] for thread in threading.enumerate()}
        assert names >= {"decode", "parse"}
    left = {thread.name for thread in set(threading.enumerate()) - others}
    assert not [name for name in left if name.startswith(("decode", "parse"))]
