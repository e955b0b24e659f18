"""Where the event loop's time goes: `python -m tests.bench.profile_gateway` (`make profile`).

A gateway in this process under cProfile, in front of a replica that costs nothing, with 32 clients. A call
that gives the interpreter lock away shows up as slow: what it waits for is the decoders.
"""

from __future__ import annotations

import asyncio
import cProfile
import os
import pstats
import tempfile
from pathlib import Path

import uvloop

from serving.main import gateway_up, new_metrics
from serving.settings import Settings
from tests.bench import photos
from tests.bench.load import post_photos
from tests.bench.servers import REPOSITORY, process


async def profile(replica: str, requests: photos.Requests) -> None:
    """Print the functions that take most time themselves."""
    settings = Settings(http_port=0, grpc_port=0, access_log_share=0.0)
    async with gateway_up(settings, [replica], ("model",), new_metrics()) as up:
        await up.catalog.ready()
        target = f"{up.http_url}/v1/models/model:classify"
        profiler = cProfile.Profile()
        profiler.enable()
        load = await asyncio.to_thread(post_photos, target, requests, clients=32, seconds=5)
        profiler.disable()
        print(load)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(40)


def main() -> None:
    """Run it."""
    data = Path(os.environ.get("SLUICE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    with (
        tempfile.TemporaryDirectory() as name,
        process("-m", "tests.bench.ceilings", "fast-replica", "32") as (port, _),
    ):
        requests = photos.write(photos.unpack(data / "photos.zip"), Path(name))
        uvloop.run(profile(f"127.0.0.1:{port}", requests))


if __name__ == "__main__":
    main()
