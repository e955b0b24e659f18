"""The README's tables of a benchmark, between two marker comments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench.report import CONTESTANTS, clients

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
TITLES = {"resnet20": "ResNet-20 at 32×32", "resnet50": "ResNet-50 at 224×224"}
COUNTS = (1, 8, 32)


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables as Markdown: who answers how many images a second, and what was asked for."""
    return "\n\n".join([_loads(model, each) for model, each in found.items()] + [_lines(found)])


def _loads(model: str, each: Mapping[str, Any]) -> str:
    rows = [
        f"| {TITLES[model]}, {each['photos']} | " + " | ".join(clients(count) for count in COUNTS) + " |",
        "|---" * (len(COUNTS) + 1) + "|",
    ]
    for name in CONTESTANTS:
        cells = [_load(each["loads"].get(f"{name}, {clients(count)}")) for count in COUNTS]
        if any(cells):
            rows.append(f"| {name} | " + " | ".join(cells) + " |")
    rows += [f"| {name} | not measured: {reason} | | |" for name, reason in each["failed_peers"].items()]
    return "\n".join(rows)


def _load(load: Mapping[str, float] | None) -> str:
    if not load:
        return ""
    failed = f", {load['failed']:.0f} failed" if load["failed"] else ""
    return f"{load['per_s']:.0f} ({load['p50_ms']:.1f} / {load['p99_ms']:.1f}){failed}"


def _lines(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = ["| in the same run | asked | found |", "|---|---|---|"]
    for model, each in found.items():
        title = TITLES[model].partition(" at ")[0]
        for line in each["lines"]:
            value = f"{line['found']:.2f} {line['unit']}".strip()
            missed = ", missed" if line["holds"] is False else ""
            rows.append(f"| {title}: {line['what']} | {line['asked']} | {value}{missed} |")
    return "\n".join(rows)


def write(found: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Put the tables between the markers of a file; raises ValueError where it has none."""
    text = path.read_text()
    block = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    if not block.search(text):
        raise ValueError(f"{path} lacks the lines {BEGIN} and {END}, between which the tables go")
    path.write_text(block.sub(lambda _: f"{BEGIN}\n{table(found)}\n{END}", text, count=1))
