"""What a benchmark found: medians and spread, ratios, a table, a file, a picture."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.load import Load

Summary = dict[str, Any]


def summary(
    rounds: Mapping[str, Sequence[Load]], parts: Mapping[str, Sequence[float]], memory_mb: Mapping[str, float]
) -> Summary:
    """Medians over the rounds, and the ratios that are promised."""
    loads = {
        name: {
            "per_s": statistics.median(each.per_s for each in found),
            "spread": max(each.per_s for each in found) / max(min(each.per_s for each in found), 1e-9),
            "p50_ms": statistics.median(each.p50_ms for each in found),
            "p99_ms": statistics.median(each.p99_ms for each in found),
            "failed": sum(each.failed for each in found),
        }
        for name, found in rounds.items()
    }
    medians = {name: statistics.median(found) for name, found in parts.items()}
    return {
        "loads": loads,
        "parts": medians,
        "memory_mb": dict(memory_mb),
        "ratios": ratios(loads, medians, cores=len(os.sched_getaffinity(0))),
    }


def ratios(
    loads: Mapping[str, Mapping[str, float]], parts: Mapping[str, float], *, cores: int
) -> dict[str, float]:
    """The figures of merit. A ceiling adds the processor time of the parts and shares it over the cores."""

    def per_s(name: str) -> float:
        return loads[name]["per_s"]

    decode_per_s = parts["decode, all cores (images/s)"]
    post_per_s = cores * per_s("empty POST, 32 clients")
    ceiling = 1 / (1 / decode_per_s + 1 / post_per_s + 1 / per_s("direct, tensors, batch 32"))
    best = max(value for name, value in parts.items() if name.startswith("model in process"))
    many, one = loads["sluice, 32 clients"], loads["sluice, 1 clients"]
    floor_ms = (
        parts["decode, one image (ms)"]
        + loads["empty POST, 1 clients"]["p50_ms"]
        + 1e3 / parts["model in process, batch 1 (images/s)"]
    )
    direct, through = loads["direct, tensors, half load"], loads["sluice, tensors, half load"]
    found = {
        "32 clients / ceiling of the parts": many["per_s"] / ceiling,
        "32 clients / hand-written FastAPI": many["per_s"] / per_s("hand-written FastAPI, 32 clients"),
        "32 clients: p99 / p50": many["p99_ms"] / many["p50_ms"],
        "32 clients / model in process at its best": many["per_s"] / best,
        "1 client: p50 beyond decode + POST + model (ms)": one["p50_ms"] - floor_ms,
        "tensors, batch 32 / model in process at its best": per_s("sluice, tensors, batch 32") / best,
        "tensors, batch 32 / direct": per_s("sluice, tensors, batch 32") / per_s("direct, tensors, batch 32"),
        "tensors, half load: added p50 (ms)": through["p50_ms"] - direct["p50_ms"],
        "tensors, half load: added p99 (ms)": through["p99_ms"] - direct["p99_ms"],
    }
    fast = loads.get("sluice, fast replica, 64 clients")
    if fast is not None:
        lower = min(decode_per_s, per_s("empty POST, 32 clients"))
        found["fast replica / min(decode, POST)"] = fast["per_s"] / lower
    return found


def write(found: Mapping[str, Summary], folder: Path) -> None:
    """Print the table, and leave `bench.json` and `bench.png` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(found, indent=2))
    for model, each in found.items():
        print(f"\n{model}: medians (and the highest over the lowest round)")
        for name, load in each["loads"].items():
            print(
                f"  {name:<44}{load['per_s']:9.1f}/s ({load['spread']:.2f})  p50 {load['p50_ms']:7.1f}"
                f"  p99 {load['p99_ms']:7.1f} ms  failed {load['failed']}"
            )
        for name, value in each["parts"].items():
            print(f"  {name:<44}{value:9.2f}")
        for name, value in each["memory_mb"].items():
            print(f"  {'memory of the ' + name:<44}{value:9.0f} MB")
        print(f"{model}: ratios")
        for name, value in each["ratios"].items():
            print(f"  {name:<52}{value:8.2f}")
    _draw(found, folder / "bench.png")


def _draw(found: Mapping[str, Summary], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(6 * len(found), 4), squeeze=False)
    for axis, (model, each) in zip(axes[0], found.items(), strict=True):
        clients = [1, 8, 32, 128]
        for name in ("sluice", "hand-written FastAPI"):
            rates = [each["loads"][f"{name}, {count} clients"]["per_s"] for count in clients]
            axis.plot([str(count) for count in clients], rates, marker="o", label=name)
        axis.set(title=model, xlabel="clients", ylabel="images/s", ylim=(0, None))
        axis.legend()
    figure.tight_layout()
    figure.savefig(path)
