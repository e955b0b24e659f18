"""The commands `sluice rollout …`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.commands import user_errors

if TYPE_CHECKING:  # imported when a command runs, so that --help stays fast
    from serving.rollout.comparison import Report, Row
    from serving.rollout.plan import Plan
    from serving.rollout.simulate import Proportion

rollout = typer.Typer(
    help="Let a new version in by evidence: start, watch, explain, simulate.", no_args_is_help=True
)

PlanFile = Annotated[
    Path | None, typer.Option("--plan", help="Plan, YAML or TOML.", show_default="the default plan")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def read_plan(path: Path | None) -> Plan:
    """The plan in a file, or the default plan."""
    from serving.rollout.plan import Plan
    from serving.rollout.plan_file import load_plan

    return Plan() if path is None else load_plan(path)


@rollout.command()
def check(plan: Annotated[Path, typer.Argument(help="Plan, YAML or TOML.")], as_json: AsJson = False) -> None:
    """Check a plan, and print it whole, with the defaults filled in. Errors point at the line."""
    with user_errors():
        import yaml

        values = read_plan(plan).model_dump(mode="json")
        print(json.dumps(values) if as_json else yaml.safe_dump(values, sort_keys=False), end="")
        if as_json:
            print()


@rollout.command()
def simulate(
    plan: PlanFile = None,
    rps: Annotated[float, typer.Option(help="Requests per second of the service.")] = 50.0,
    stable_error: Annotated[float, typer.Option(help="Share of stable's requests that fail.")] = 0.005,
    candidate_error: Annotated[
        float | None, typer.Option(help="The candidate's.", show_default="three times stable's")
    ] = None,
    stable_slow: Annotated[
        float, typer.Option("--latency", help="Share of stable's requests over the latency limit.")
    ] = 0.01,
    candidate_slow: Annotated[
        float | None, typer.Option("--candidate-latency", help="The candidate's.", show_default="stable's")
    ] = None,
    agreement: Annotated[float, typer.Option(help="Share of images both name alike.")] = 0.97,
    incidents: Annotated[float, typer.Option(help="Incidents an hour that hit both versions.")] = 0.0,
    incident_error: Annotated[
        float, typer.Option(help="Share of requests that fail in one minute of it.")
    ] = 0.2,
    runs: Annotated[int, typer.Option(min=10, max=100_000, help="Rollouts to simulate of each kind.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same figures.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Answer before the fact: how often would a good version be rolled back, how soon a bad one be caught?

    The plan is run against invented traffic with the code that decides real rollouts; beside it the rules of
    Argo Rollouts and Flagger as their documentation gives them, and a test that knows the true rates.
    """
    with user_errors():
        from serving.rollout.comparison import compare
        from serving.rollout.traffic import Traffic

        traffic = Traffic(
            rps=rps,
            stable_error=stable_error,
            candidate_error=min(1.0, 3.0 * stable_error) if candidate_error is None else candidate_error,
            stable_slow=stable_slow,
            candidate_slow=stable_slow if candidate_slow is None else candidate_slow,
            agreement=agreement,
            incidents_per_hour=incidents,
            incident_error=incident_error,
        )
        report = compare(read_plan(plan), traffic, runs=runs, seed=seed)
        if as_json:
            print(json.dumps(report.to_json()))
        else:
            _print_report(report)


def _print_report(report: Report) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console()
    traffic = report.traffic
    console.print(
        f"{report.runs} simulated rollouts of each kind at {traffic.rps:g} requests/s; of stable's requests "
        f"{traffic.stable_error:.3%} fail and {traffic.stable_slow:.3%} are slow; the given candidate: "
        f"{traffic.candidate_error:.3%} and {traffic.candidate_slow:.3%}."
    )
    for version in dict.fromkeys(row.version for row in report.rows):
        table = Table(title=f"A candidate {version}", title_justify="left", box=SIMPLE, show_lines=True)
        table.add_column("rule", no_wrap=True)
        for heading in ("promoted", "rolled back", "undecided", "after", "exposed", "harmed"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in report.rows:
            if row.version == version:
                table.add_row(*_cells(row))
        console.print()
        console.print(table)
    console.print(
        "Shares with 95 % confidence intervals. After: median time to the end; exposed: median requests that "
        "the candidate answered until then; harmed: how many of these failed or were slow. The plan copies "
        "requests to the candidate first: a version that is caught then has harmed nobody."
    )


def _cells(row: Row) -> list[str]:
    after = "" if row.median_after_s is None else f"{row.median_after_s / 60.0:.1f} min"
    counts = ["" if number is None else f"{number:.0f}" for number in (row.median_exposed, row.median_harmed)]
    return [
        row.rule,
        *(_share(each) for each in (row.promoted, row.rolled_back, row.undecided)),
        after,
        *counts,
    ]


def _share(proportion: Proportion) -> str:
    return f"{proportion.share:.1%}\n{100 * proportion.lower:.1f} – {100 * proportion.upper:.1f}"
