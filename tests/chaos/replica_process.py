"""A scripted replica as a process: `python -m tests.chaos.replica_process PORT`; prints its address."""

from __future__ import annotations

import asyncio
import sys

from tests.support.fake_replica import FakeReplica, running


async def main() -> None:
    """Serve until killed."""
    async with running(FakeReplica(), address=f"127.0.0.1:{sys.argv[1]}") as replica:
        print(replica.address, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
