"""The command `plan-capacity`: replicas, gateways, latency and cost of a load."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.commands.terminal import user_errors
from serving.errors import InvalidInput

if TYPE_CHECKING:  # imported when the command runs, so that --help stays fast
    from serving.commands.capacity import Measured, Need, Option

_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_LATENCY = re.compile(r"(?P<batch>\d+):(?P<value>\d+(\.\d+)?)(?P<unit>ms|us|s)")


def parse_latencies(texts: list[str]) -> dict[int, float]:
    """`8:6.2ms` -> {8: 0.0062}; raises InvalidInput for any other form, and for a size given twice."""
    found: dict[int, float] = {}
    for text in [part for each in texts for part in each.split(",") if part]:
        match = _LATENCY.fullmatch(text.strip())
        if match is None:
            raise InvalidInput(f'"{text}" is not BATCH:LATENCY with a unit, such as 8:6.2ms')
        batch = int(match["batch"])
        if batch in found:
            raise InvalidInput(f"the latency of a batch of {batch} is given twice; which is it?")
        found[batch] = float(match["value"]) * _UNITS[match["unit"]]
    return found


def plan_capacity(
    rate: Annotated[float, typer.Option(help="Images per second at peak.")],
    latency: Annotated[
        list[str] | None,
        typer.Option(help="BATCH:LATENCY of one replica, such as 32:15ms; repeatable, or comma-separated."),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT or unix:PATH of a replica to measure instead; it must be idle otherwise."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="With --measure: the model.")] = None,
    p99_ms: Annotated[
        float | None, typer.Option(help="Upper bound of the p99, ms.", show_default="none")
    ] = None,
    utilisation: Annotated[float, typer.Option(help="Share of a replica's best rate to plan for.")] = 0.7,
    spare: Annotated[int, typer.Option(min=0, help="Spare replicas, beyond what the load takes.")] = 1,
    calls_per_replica: Annotated[int, typer.Option(min=1, help="The gateway's setting of that name.")] = 2,
    overhead_ms: Annotated[float, typer.Option(min=0, help="What a gateway adds to a request.")] = 5.0,
    replica_cost: Annotated[float, typer.Option(min=0, help="Price of a replica per hour.")] = 0.0,
    gateway_rate: Annotated[float, typer.Option(help="Images per second of a gateway.")] = 600.0,
    gateway_cost: Annotated[float, typer.Option(min=0, help="Price of a gateway per hour.")] = 0.0,
    image_kb: Annotated[float, typer.Option(help="Mean size of an encoded image, kB.")] = 55.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how many replicas and gateways a load takes, how long answers take, and what a million images cost.

    From measured latencies of batches on one replica; the arithmetic is shown. Exits with 1 if no number of
    replicas keeps the latency.
    """
    with user_errors():
        from serving.commands import capacity

        if (latency is None) == (measure is None):
            raise InvalidInput("pass either --latency BATCH:LATENCY for some sizes, or --measure HOST:PORT")
        seconds = parse_latencies(latency or []) if measure is None else _measure(measure, model)
        measured = capacity.Measured(seconds)
        need = capacity.Need(
            images_per_s=rate,
            p99_s=None if p99_ms is None else p99_ms / 1e3,
            utilisation=utilisation,
            spare=spare,
            calls_per_replica=calls_per_replica,
            overhead_s=overhead_ms / 1e3,
            replica_cost=replica_cost,
            gateway_images_per_s=gateway_rate,
            gateway_cost=gateway_cost,
            image_bytes=image_kb * 1e3,
        )
        found = capacity.options(measured, need)
        chosen = capacity.best(found, need)
        if as_json:
            print(json.dumps(_as_json(measured, need, found, chosen), indent=1))
        else:
            _print(measured, need, found, chosen)
        if chosen is None:
            raise typer.Exit(1)


def _as_json(measured: Measured, need: Need, found: list[Option], chosen: Option | None) -> dict[str, Any]:
    from serving.commands import capacity

    return {
        "measured_s": {str(batch): seconds for batch, seconds in sorted(measured.seconds.items())},
        "need": asdict(need),
        "gateways": capacity.gateways(need),
        "options": [asdict(option) for option in found],
        "best": None if chosen is None else asdict(chosen),
    }


def _print(measured: Measured, need: Need, found: list[Option], chosen: Option | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from serving.commands import capacity

    table = Table(
        "largest batch", "L ms", "img/s a replica", "replicas", "mean batch", "p99 ms ≤", "a million"
    )
    for column in table.columns:
        column.justify = "right"
    for option in found:
        table.add_row(
            f"{option.max_batch}{' *' if option is chosen else ''}",
            f"{measured.latency_s(option.max_batch) * 1e3:.2f}",
            f"{option.full_rate:,.0f}",
            f"{option.replicas:,}",
            f"{option.batch:.1f}",
            f"{option.p99_s * 1e3:.1f}",
            f"{option.cost_per_million:,.3f}" if option.cost_per_million else "–",
        )
    console = Console()
    console.print(table)
    if chosen is None:
        console.print(
            f"no number of replicas keeps a p99 of {(need.p99_s or 0) * 1e3:g} ms with these latencies"
        )
        return
    console.print(f"\nHow the line marked * comes about (largest batch {chosen.max_batch}):\n")
    for name, line in capacity.arithmetic(measured, need, chosen).items():
        console.print(f"  {name + ':':14} {line}", highlight=False, soft_wrap=True)


def _measure(address: str, model: str | None) -> dict[int, float]:
    import asyncio

    from serving.commands.capacity_measure import measure

    if model is None:
        raise InvalidInput("--measure needs --model")
    return asyncio.run(measure(address, model))
