"""A scripted replica as a process: `python -m tests.chaos.replica_process [HOST:]PORT`; prints its address.

With two more arguments it computes one batch at a time: so many seconds for each, and so many for each image.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from serving import tensors
from tests.support.fake_replica import FakeReplica, running


def busy_for(batch_s: float, image_s: float) -> FakeReplica:
    """A replica that takes its time as a processor would that does nothing else."""
    turn = asyncio.Lock()

    async def compute(request: Any) -> None:
        async with turn:
            await asyncio.sleep(batch_s + image_s * len(tensors.from_proto(request.inputs["images"])))

    return FakeReplica(before_predict=compute)


async def main() -> None:
    """Serve until killed."""
    where, *times = sys.argv[1:]
    host, _, port = where.rpartition(":")
    host = host or "127.0.0.1"
    replica = busy_for(*map(float, times)) if times else FakeReplica()
    async with running(replica, address=f"{host}:{port}"):
        print(f"{host}:{replica.address.rpartition(':')[2]}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
