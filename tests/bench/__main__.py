"""The benchmark: Sluice against its parts, a hand-written server, its peers, and itself without a gateway.

`python -m tests.bench` (`make bench`). Everything runs on this machine, one load at a time, round after
round, so that a slow minute slows all alike; what counts are ratios within one run. Writes `bench.json` and
`bench.png` into the folder that `--out` names; what an earlier run found for other models stays there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench import photos, readme, report
from tests.bench.load import NoAnswer
from tests.bench.measure import measure
from tests.bench.peers.launcher import PEERS
from tests.bench.servers import REPOSITORY
from tests.bench.setting import SUBJECTS, Plan


def size(text: str) -> tuple[int, int]:
    """`500x375` -> (500, 375)."""
    found = re.fullmatch(r"(\d{2,4})x(\d{2,4})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text} is not WIDTHxHEIGHT in pixels, such as 500x375")
    return int(found[1]), int(found[2])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    made.add_argument("--models", nargs="+", default=["resnet20"], choices=list(SUBJECTS))
    made.add_argument(
        "--peers",
        nargs="*",
        choices=list(PEERS),
        help="measure other servers, too, all or those named; installs them on first use",
    )
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--seconds", type=float, default=4.0, help="of each load, in each round")
    made.add_argument(
        "--size",
        type=size,
        metavar="WIDTHxHEIGHT",
        help="scale the photographs to one size, at 0.29 bytes a pixel: 500x375 gives 55 kB, which is what "
        "published figures of other servers were measured with; without it they are posted as they are",
    )
    made.add_argument("--out", type=Path, default=REPOSITORY / "build" / "bench")
    made.add_argument(
        "--readme",
        type=Path,
        metavar="BENCH_JSON",
        help="measure nothing: put this file's tables into README.md",
    )
    return made


def photographs(data: Path, scale_to: tuple[int, int] | None) -> tuple[list[bytes], str]:
    """The photographs, and a few words about them."""
    if not (data / "photos.zip").exists():
        sys.exit(f"error: there is no photos.zip in {data}; set SLUICE_TEST_DATA to the folder that has it")
    found = photos.unpack(data / "photos.zip")
    shape = "photographs"
    if scale_to is not None:
        found = photos.resized(found, *scale_to)
        shape = f"{scale_to[0]}×{scale_to[1]} photographs"
    return found, f"{shape} of {sum(map(len, found)) / len(found) / 1e3:.0f} kB"


def main() -> None:
    """Run it."""
    arguments = parser().parse_args()
    if arguments.readme is not None:
        try:
            readme.write(json.loads(arguments.readme.read_text()), REPOSITORY / "README.md")
        except (OSError, ValueError) as error:
            sys.exit(f"error: {error}")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else servers that are held would stay for ever
    data = Path(os.environ.get("SLUICE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    images, about = photographs(data, arguments.size)
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        named = list(PEERS) if arguments.peers == [] else arguments.peers or []
        peers = [PEERS[stem] for stem in named]
        plan = Plan(arguments.rounds, arguments.seconds, peers, images, Path(name))
        try:
            found = {model: measure(model, plan) | {"photos": about} for model in arguments.models}
        except (NoAnswer, RuntimeError, TimeoutError, subprocess.CalledProcessError) as error:
            sys.exit(f"error: {error}")
    report.write(found, arguments.out)


if __name__ == "__main__":
    main()
