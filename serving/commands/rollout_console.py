"""Rollouts in a terminal: the tables of the simulator and the live view of `sluice rollout watch`."""

from __future__ import annotations

import math

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from serving.commands.terminal import printable
from serving.rollout.comparison import Report, Row
from serving.rollout.evidence import FloatArray
from serving.rollout.judge import alphas, signals
from serving.rollout.machine import Phase, judged_phase
from serving.rollout.record import Rollout
from serving.rollout.simulate import Proportion
from serving.rollout.verdict import percent

_BAR = 40


def print_report(report: Report) -> None:
    """Prints what was simulated, one table per version."""
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


def view(rollout: Rollout) -> RenderableType:
    """A rollout at a glance: traffic, counts, evidence against its limits, the last moves."""
    state = rollout.state
    title = Text(f"{rollout.model}  {rollout.stable} → {rollout.candidate}   ", style="bold")
    title.append(_phase(rollout), style=_STYLES.get(state.phase, "cyan"))
    last = [
        Text(f"  {event.after.phase.value:13s} {printable(event.after.reason.text)}")
        for event in rollout.events[-4:]
    ]
    return Group(title, _traffic(rollout), _evidence(rollout), _agreement(rollout), *last)


_STYLES = {
    Phase.PROMOTED: "green",
    Phase.ROLLED_BACK: "red",
    Phase.ROLLING_BACK: "red",
    Phase.PAUSED: "yellow",
}


def _phase(rollout: Rollout) -> str:
    state = rollout.state
    if state.phase is Phase.CANARY:
        return f"canary, step {state.step + 1} of {len(rollout.plan.canary)}"
    if state.phase is Phase.PAUSED and state.resume_to is not None:
        return f"paused in {state.resume_to.value}"
    return state.phase.value.replace("_", " ")


def _traffic(rollout: Rollout) -> Text:
    split = rollout.split()
    weight = 1.0 if split.stable == rollout.candidate else split.weight
    wide = round(_BAR * weight)
    bar = Text("traffic  ")
    bar.append("█" * (_BAR - wide), style="blue")
    bar.append("█" * wide, style="magenta")
    bar.append(f"  {percent(1.0 - weight)} stable, {percent(weight)} candidate")
    if split.shadow:
        bar.append(f"; {percent(split.shadow)} copied")
    return bar


def _evidence(rollout: Rollout) -> Table:
    table = Table(box=SIMPLE)
    table.add_column("criterion")
    for heading in ("candidate", "stable", "worse: e / limit", "good: e / limit"):
        table.add_column(heading, justify="right")
    found = signals(rollout.plan, rollout.evidence, shadow=False)
    levels = alphas(rollout.plan)
    for name, signal in found.criteria.items():
        counts = rollout.evidence.criteria[name]
        table.add_row(
            name,
            f"{float(counts.candidate_bad):.0f} of {float(counts.candidate_n):.0f}",
            f"{float(counts.stable_bad):.0f} of {float(counts.stable_n):.0f}",
            f"{_e(signal.log_worse)} / {1 / levels[name]:.0f}",
            f"{_e(signal.log_good)} / {1 / rollout.plan.alpha_promote:.0f}",
        )
    return table


def _e(log_e: FloatArray) -> str:
    return f"{math.exp(min(float(log_e), 300.0)):.3g}"


def _agreement(rollout: Rollout) -> Text:
    compared = float(rollout.evidence.compared.sum())
    if not compared:
        return Text("no copies compared yet" if judged_phase(rollout.state) is Phase.SHADOW else "")
    agreed = float(rollout.evidence.agreed.sum())
    return Text(f"agreement: {agreed:.0f} of {compared:.0f} copies ({agreed / compared:.1%})")
