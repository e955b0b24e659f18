"""The command `top`: what a running gateway is doing, in a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from serving.commands.asking import ApiKey, Ca, Url, ask, connection, read_as_a_gateways
from serving.commands.terminal import console, user_errors

if TYPE_CHECKING:  # imported when the command runs, so that --help stays fast
    from rich.console import RenderableType

Labels = Mapping[str, str]

_REQUESTS = "sluice_requests_total"
_DURATIONS = "sluice_request_duration_seconds_bucket"


@dataclass(frozen=True, slots=True)
class Scrape:
    """One look at the metrics page: when, in seconds on the monotonic clock, and every sample."""

    at: float
    samples: Mapping[str, Sequence[tuple[Labels, float]]]

    def total(self, name: str, **labels: str) -> float:
        """The sum over the series of this name that have these labels."""
        return sum(value for has, value in self.samples.get(name, ()) if labels.items() <= has.items())

    def seen(self, name: str, *by: str) -> dict[tuple[str, ...], float]:
        """A gauge by these labels; if several workers each report what they see, the largest."""
        found: dict[tuple[str, ...], float] = {}
        for has, value in self.samples.get(name, ()):
            key = tuple(has[label] for label in by)
            found[key] = max(value, found.get(key, value))
        return found


@dataclass(frozen=True, slots=True)
class Row:
    """One version between two looks: requests and failures a second, and quantiles in seconds."""

    model: str
    version: str
    requests_per_s: float
    failed_per_s: float
    median_s: float
    p99_s: float


def parse(text: str, at: float) -> Scrape:
    """What a metrics page says."""
    from prometheus_client.parser import text_string_to_metric_families

    samples: dict[str, list[tuple[Labels, float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return Scrape(at, samples)


def growth(before: Scrape, after: Scrape) -> Scrape:
    """By how much each counter grew between two looks; one that fell restarted with its process, at 0."""
    grown: dict[str, list[tuple[Labels, float]]] = {}
    for name in (_REQUESTS, _DURATIONS):
        known = {frozenset(has.items()): value for has, value in before.samples.get(name, ())}
        for has, value in after.samples.get(name, ()):
            past = known.get(frozenset(has.items()), 0.0)
            grown.setdefault(name, []).append((has, value - past if value >= past else value))
    return Scrape(after.at, grown)


def rows(before: Scrape, after: Scrape) -> list[Row]:
    """What each version did between two looks, by model and version; then what reached none, if anything."""
    spent_s = max(after.at - before.at, 1e-9)
    grown = growth(before, after)
    found = sorted(
        {
            (has["model"], has["version"])
            for has, ever in after.samples.get(_REQUESTS, ())
            if has["version"] or ever > 0
        }
    )
    made = []
    for model, version in found:
        of = {"model": model, "version": version}
        requests = grown.total(_REQUESTS, **of)
        good = grown.total(_REQUESTS, **of, outcome="ok")
        median_s, p99_s = (quantile(grown, each, **of) for each in (0.5, 0.99))
        made.append(Row(model, version, requests / spent_s, (requests - good) / spent_s, median_s, p99_s))
    return made


def quantile(grown: Scrape, wanted: float, **labels: str) -> float:
    """A quantile of the counted durations, in seconds, linear within a bucket; NaN if there are none."""
    limits = sorted({float(has["le"]) for has, _ in grown.samples.get(_DURATIONS, ())})
    counts = [grown.total(_DURATIONS, **labels, le=_text(limit)) for limit in limits]
    if not counts or counts[-1] <= 0:
        return math.nan
    rank, lower, below = wanted * counts[-1], 0.0, 0.0
    for limit, count in zip(limits, counts, strict=True):
        if count >= rank:
            if math.isinf(limit):
                return lower
            return lower + (limit - lower) * (rank - below) / max(count - below, 1e-9)
        lower, below = limit, count
    return lower


def _text(limit: float) -> str:
    return "+Inf" if math.isinf(limit) else str(limit)


def view(before: Scrape, after: Scrape) -> RenderableType:
    """The screen: what each version did, the room, the replicas."""
    from rich.console import Group
    from rich.table import Table

    table = Table("model", "version")
    for heading in ("requests/s", "failed/s", "median", "p99"):
        table.add_column(heading, justify="right")
    for row in rows(before, after):
        figures = [f"{row.requests_per_s:.1f}", f"{row.failed_per_s:.1f}", _ms(row.median_s), _ms(row.p99_s)]
        table.add_row(row.model or "(none)", row.version, *figures)
    in_flight = after.total("sluice_requests_in_flight")
    room = after.total("sluice_requests_in_flight_limit")
    waiting = after.total("sluice_queue_depth")
    up = after.seen("sluice_replica_up", "replica")
    having = after.seen("sluice_model_version_replicas", "model", "version")
    versions = ", ".join(f"{model} {version}: {count:.0f}" for (model, version), count in having.items())
    return Group(
        table,
        f"{in_flight:.0f} of {room:.0f} requests in flight, {waiting:.0f} images waiting; "
        f"{sum(up.values()):.0f} of {len(up)} replicas up",
        f"on how many replicas versions are: {versions or 'none is'}",
    )


def _ms(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{seconds * 1000:.1f} ms"


def top(
    url: Url = "http://127.0.0.1:8080",
    interval: Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds between looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one interval and stop.")] = False,
    api_key: ApiKey = None,
    ca: Ca = None,
) -> None:
    """Watch a running gateway: requests per second, latencies, versions, replicas. Ends on Ctrl-C."""
    with user_errors():
        from rich.live import Live

        with connection(url, api_key, ca) as client:

            def look() -> Scrape:
                with read_as_a_gateways(client):
                    found = parse(ask(client, "GET", "/metrics").text, time.monotonic())
                    if "sluice_build_info" not in found.samples:
                        raise ValueError("another program's metrics")
                    return found

            before = look()
            time.sleep(interval)
            if once:
                console().print(view(before, look()))
                return
            with Live(console=console(), auto_refresh=False, screen=True) as live:
                while True:
                    after = look()
                    live.update(view(before, after), refresh=True)
                    before = after
                    time.sleep(interval)
