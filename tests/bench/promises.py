"""What a run must show, and whether it did: from the medians of a run to lines of a table. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Loads = Mapping[str, Mapping[str, float]]
GPU_PER_S = 3000.0  # images that one GPU takes


class Line(NamedTuple):
    """A figure of merit.

    Attributes:
        what: in words.
        found: the figure.
        least, most: what is asked of it; both None where it only informs.
        unit: `ms`, `images/s`, `cores`, or nothing for a ratio.
    """

    what: str
    found: float
    least: float | None = None
    most: float | None = None
    unit: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether it is as asked; None where nothing is."""
        if self.least is None and self.most is None:
            return None
        return (self.least is None or self.found >= self.least) and (
            self.most is None or self.found <= self.most
        )

    @property
    def asked(self) -> str:
        """In words."""
        if self.least is not None:
            return f"≥ {self.least:g}{f' {self.unit}' if self.unit else ''}"
        return "" if self.most is None else f"≤ {self.most:g}{f' {self.unit}' if self.unit else ''}"


class Ceiling(NamedTuple):
    """The processor time of an image's parts, in core-milliseconds."""

    decode_ms: float
    post_ms: float
    model_ms: float
    call_ms: float
    cores: int

    @property
    def per_s(self) -> float:
        """What the cores could do if nothing else cost anything."""
        return self.cores * 1e3 / (self.decode_ms + self.post_ms + self.model_ms + self.call_ms)

    def __str__(self) -> str:
        return (
            f"{self.cores} cores / (decode {self.decode_ms:.3f} + empty POST {self.post_ms:.3f} + model at "
            f"batch 32 {self.model_ms:.3f} + gRPC call / 32 {self.call_ms:.3f} ms) = {self.per_s:.0f}/s"
        )


def ceiling(parts: Mapping[str, float], cores: int) -> Ceiling:
    """The costs of the parts added up."""
    return Ceiling(
        cores * 1e3 / parts["decode, all cores (images/s)"],
        parts["empty POST, server (core-ms)"],
        cores * 1e3 / parts["model in process, batch 32 (images/s)"],
        parts["gRPC call with a batch (core-ms an image)"],
        cores,
    )


def best_in_process(parts: Mapping[str, float]) -> float:
    """Images a second of the model alone, at its best batch size."""
    return max(value for name, value in parts.items() if name.startswith("model in process, batch"))


def small_model(loads: Loads, parts: Mapping[str, float], cores: int) -> list[Line]:
    """ResNet-20: HTTP and decoding cost as much as the model."""
    many, one, whole = loads["Sluice, 32 clients"], loads["Sluice, 1 client"], ceiling(parts, cores)
    with_client = whole._replace(post_ms=whole.post_ms + parts["empty POST, wrk (core-ms)"])
    sum_ms = (
        parts["decode, one image alone (ms)"]
        + loads["empty POST, 1 client"]["p50_ms"]
        + parts["model in process, one image alone (ms)"]
    )
    lines = [
        Line("throughput at 32 clients ÷ ceiling of the parts", many["per_s"] / whole.per_s, least=0.85),
        Line("the same, with what wrk takes of the cores in the ceiling", many["per_s"] / with_client.per_s),
    ]
    for name, least in (("PyTriton", 2.3), ("hand-written FastAPI", None)):
        if found := loads.get(f"{name}, 32 clients"):
            lines.append(
                Line(f"throughput at 32 clients ÷ {name}", many["per_s"] / found["per_s"], least=least)
            )
    lines += [
        Line("p99 ÷ p50 at 32 clients", many["p99_ms"] / many["p50_ms"], most=2.0),
        Line("p50 at 1 client − (decode + POST + model)", one["p50_ms"] - sum_ms, most=1.5, unit="ms"),
    ]
    return lines + tensors(loads, parts, 32) + added(loads) + fast_replica(loads, parts, cores)


def tensors(loads: Loads, parts: Mapping[str, float], rows: int) -> list[Line]:
    """Predict over gRPC, as fast as goes."""
    through, direct = loads[f"Sluice, tensors of {rows}"], loads[f"direct, tensors of {rows}"]
    best = best_in_process(parts)
    return [
        Line("tensors over gRPC ÷ model in process at its best batch", through["per_s"] / best, least=0.95),
        Line(
            "tensors over gRPC ÷ direct to the model server", through["per_s"] / direct["per_s"], least=0.95
        ),
    ]


def added(loads: Loads) -> list[Line]:
    """What the gateway adds to a call at half load."""
    lines = []
    for rows, words in ((1, "one image"), (32, "a batch of 32")):
        through, direct = loads[f"Sluice, half load, {rows}"], loads[f"direct, half load, {rows}"]
        for which, most in (("p50", 1.0), ("p99", 3.0)):
            found = through[f"{which}_ms"] - direct[f"{which}_ms"]
            lines.append(Line(f"added {which} at half load, {words} a call", found, most=most, unit="ms"))
    return lines


def fast_replica(loads: Loads, parts: Mapping[str, float], cores: int) -> list[Line]:
    """The gateway before a replica that answers a batch in 5 ms, as one with a GPU does."""
    found = loads["Sluice, fast replica, 64 clients"]["per_s"]
    lower = min(parts["decode, all cores (images/s)"], loads["empty POST, 32 clients"]["per_s"])
    return [
        Line("fast replica: throughput ÷ min(decode, empty POST)", found / lower, least=0.70),
        Line("fast replica: throughput a core", found / cores, unit="images/s"),
        Line(f"cores that feed a GPU of {GPU_PER_S:.0f} images/s", GPU_PER_S / (found / cores), unit="cores"),
    ]


def large_model(loads: Loads, parts: Mapping[str, float], rows: int) -> list[Line]:
    """ResNet-50: the model is nearly all."""
    many = loads["Sluice, 32 clients"]["per_s"]
    lines = [
        Line(
            "throughput at 32 clients ÷ model in process at its best batch",
            many / best_in_process(parts),
            0.95,
        )
    ]
    lines += [
        Line(f"throughput at 32 clients ÷ {name}", many / loads[f"{name}, 32 clients"]["per_s"])
        for name in ("PyTriton", "hand-written FastAPI")
        if loads.get(f"{name}, 32 clients", {}).get("per_s")
    ]
    return lines + tensors(loads, parts, rows)


def medians(rounds: Sequence[Sequence[Line]]) -> list[Line]:
    """Each line with the median of what the rounds found, so that a machine that changes its pace from one
    round to the next changes no ratio."""
    lines = {line.what: line for each in rounds for line in each}
    found = {what: [line.found for each in rounds for line in each if line.what == what] for what in lines}
    return [line._replace(found=statistics.median(found[what])) for what, line in lines.items()]


def as_table(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """For bench.json."""
    return [
        {"what": each.what, "asked": each.asked, "found": each.found, "unit": each.unit, "holds": each.holds}
        for each in lines
    ]
