"""What a benchmark found: medians and spread, lines of what it must show, a file, a picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.load import Load

Summary = dict[str, Any]
CONTESTANTS = ("Sluice", "PyTriton", "LitServe", "KServe", "BentoML", "hand-written FastAPI")


def medians(rounds: Sequence[Mapping[str, Load]]) -> dict[str, dict[str, float]]:
    """Of each load over the rounds that have it; `spread` is the highest round over the lowest."""
    names = dict.fromkeys(name for each in rounds for name in each)
    loads = {name: [each[name] for each in rounds if name in each] for name in names}
    return {
        name: {
            "per_s": statistics.median(each.per_s for each in found),
            "spread": max(each.per_s for each in found) / max(min(each.per_s for each in found), 1e-9),
            "p50_ms": statistics.median(each.p50_ms for each in found),
            "p99_ms": statistics.median(each.p99_ms for each in found),
            "client_ms": statistics.median(each.client_ms for each in found),
            "failed": sum(each.failed for each in found),
        }
        for name, found in loads.items()
    }


def parts(rounds: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """The median of each part over the rounds."""
    names = dict.fromkeys(name for each in rounds for name in each)
    return {name: statistics.median(value for each in rounds for value in each[name]) for name in names}


def clients(count: int) -> str:
    """In words."""
    return "1 client" if count == 1 else f"{count} clients"


def merge(found: Mapping[str, Summary], folder: Path) -> dict[str, Summary]:
    """What was found, and what an earlier run found for other models."""
    path = folder / "bench.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    earlier = {model: each for model, each in earlier.items() if "lines" in each}
    return dict(sorted({**earlier, **found}.items()))


def write(found: Mapping[str, Summary], folder: Path) -> None:
    """Print the tables, and leave `bench.json` and `bench.png` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for model, each in found.items():
        _print(model, each)
    whole = merge(found, folder)
    (folder / "bench.json").write_text(json.dumps(whole, indent=2))
    _draw(whole, folder / "bench.png")


def _print(model: str, each: Summary) -> None:
    print(f"\n{model}, {each['photos']}: medians (and the highest over the lowest round)")
    for name, load in each["loads"].items():
        print(
            f"  {name:<44}{load['per_s']:9.1f}/s ({load['spread']:.2f})  p50 {load['p50_ms']:7.1f}"
            f"  p99 {load['p99_ms']:7.1f} ms  failed {load['failed']}"
        )
    for name, value in each["parts"].items():
        print(f"  {name:<44}{value:9.3f}")
    for name, value in each["memory_mb"].items():
        print(f"  {'memory of ' + name:<44}{value:9.0f} MB")
    for name, reason in each["failed_peers"].items():
        print(f"  {name}: NOT MEASURED, {reason}")
    print(f"{model}: what it must show")
    if each["ceiling"]:
        print(f"  ceiling of the parts: {each['ceiling']}")
    for line in each["lines"]:
        verdict = {True: "holds", False: "DOES NOT HOLD", None: ""}[line["holds"]]
        print(f"  {line['what']:<64}{line['found']:9.2f} {line['unit']:<9}{line['asked']:<10}{verdict}")


def _draw(found: Mapping[str, Summary], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(6 * len(found), 4), squeeze=False)
    for axis, (model, each) in zip(axes[0], found.items(), strict=True):
        for name in CONTESTANTS:
            counts = [count for count in each["clients"] if f"{name}, {clients(count)}" in each["loads"]]
            rates = [each["loads"][f"{name}, {clients(count)}"]["per_s"] for count in counts]
            if rates:
                axis.plot([str(count) for count in counts], rates, marker="o", label=name)
        axis.set(title=model, xlabel="clients", ylabel="images/s", ylim=(0, None))
        axis.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
