"""Draws what the dashboards and the page show of a live service into `docs/`.

    SLUICE_TEST_MODELS=models python -m tests.observability.pictures

Grafana is not needed: the panels are read from the dashboards' JSON, their expressions are asked of the
Prometheus that watches the scene, and matplotlib draws the answers.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from k8s.dashboards.__main__ import FOLDER
from serving.commands.serve import SAMPLE
from tests.conftest import REPOSITORY
from tests.observability import browser as browsers
from tests.observability import scene as scenes
from tests.observability.scene import Scene

DOCS = REPOSITORY / "docs"
LOAD_S = 60.0
COLUMNS = 3
PERCENT = {"percentunit"}


def panels(name: str) -> list[dict[str, Any]]:
    """The panels of a dashboard that draw curves, in their order."""
    found = json.loads((FOLDER / name).read_text())["panels"]
    inner = [each for panel in found for each in (panel, *panel.get("panels", ()))]
    return [panel for panel in inner if panel["type"] == "timeseries"]


def curves(scene: Scene, expression: str) -> list[dict[str, Any]]:
    """The series of an expression over the time of the load."""
    plain = (
        expression.replace("$__rate_interval", "10s").replace("$model", "digits").replace("$namespace", ".*")
    )
    params: dict[str, Any] = {
        "query": plain,
        "start": scene.loaded_at - LOAD_S,
        "end": scene.loaded_at,
        "step": "1",
    }
    answer = httpx.get(f"{scene.prometheus_url}/api/v1/query_range", params=params, timeout=60)
    found: list[dict[str, Any]] = answer.json()["data"]["result"]
    return found


def legend_of(template: str, labels: dict[str, str]) -> str:
    """A series' name as Grafana would make it."""
    return re.sub(r"\{\{(\w+)\}\}", lambda name: labels.get(name[1], ""), template)


def draw_panel(scene: Scene, axes: Axes, panel: dict[str, Any]) -> bool:
    """Draw one panel; whether there was anything to draw."""
    drawn = 0
    for target in panel["targets"]:
        for series in curves(scene, target["expr"]):
            legend = legend_of(target["legendFormat"], series["metric"])
            at = [float(when) - scene.loaded_at + LOAD_S for when, _ in series["values"]]
            scale = 100 if panel["fieldConfig"]["defaults"].get("unit") in PERCENT else 1
            values = [float(value) * scale for _, value in series["values"]]
            axes.plot(at, values, linewidth=1.4, label=legend.strip() or None)
            drawn += 1
    unit = panel["fieldConfig"]["defaults"].get("unit", "short")
    shown = {"reqps": "requests/s", "s": "s", "percentunit": "%", "bytes": "bytes", "µs": "µs"}.get(unit, "")
    axes.set_title(panel["title"], fontsize=10, loc="left")
    axes.set_ylabel(shown, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    if 0 < drawn <= 12:
        axes.legend(fontsize=6, loc="upper left", framealpha=0.6)
    return drawn > 0


def draw_board(scene: Scene, name: str) -> None:
    """Draw the panels of a dashboard that have data."""
    shown = [panel for panel in panels(name) if any(curves(scene, each["expr"]) for each in panel["targets"])]
    rows = -(-len(shown) // COLUMNS)
    figure, grid = plt.subplots(rows, COLUMNS, figsize=(14, 2.7 * rows), squeeze=False)
    for axes, panel in zip(grid.flat, shown, strict=False):
        draw_panel(scene, axes, panel)
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("seconds", fontsize=8)
    figure.tight_layout()
    figure.savefig(DOCS / f"dashboard-{Path(name).stem}.png", dpi=90)
    plt.close(figure)


def shoot_page(scene: Scene) -> None:
    """The page with an answer and a rollout: light, dark, and on a phone."""
    with browsers.chromium() as browser:
        page = browsers.opened(browser, scene.http_url, scene.key)
        page.wait_for_selector(".rollout")
        # Evidence between moves is what the page has seen itself: let it look for a while.
        page.wait_for_timeout(5_000)
        browsers.draw(page, browsers.ZERO)
        page.set_input_files("#file", SAMPLE)
        page.wait_for_selector("#preview:not([hidden])")
        browsers.answer(page)
        page.screenshot(path=DOCS / "page-light.png", full_page=True)
        page.emulate_media(color_scheme="dark")
        page.screenshot(path=DOCS / "page-dark.png", full_page=True)
        page.set_viewport_size(browsers.PHONE)  # type: ignore[arg-type]  # a plain dict has these keys
        page.screenshot(path=DOCS / "page-phone.png")


def main() -> None:
    """Run the scene for a minute, and draw."""
    models = Path(os.environ.get("SLUICE_TEST_MODELS", "models"))
    with tempfile.TemporaryDirectory() as folder, scenes.running(models, Path(folder), LOAD_S) as scene:
        for name in ("service.json", "rollout.json", "fleet.json"):
            draw_board(scene, name)
        shoot_page(scene)
        print(f"{scene.sent.total()} requests in {LOAD_S:.0f} s; drawn at {time.strftime('%H:%M')}")


if __name__ == "__main__":
    main()
