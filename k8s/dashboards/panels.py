"""What the dashboards' panels have in common."""

from __future__ import annotations

import re
from typing import NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, QueryVariable
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

# Prometheus may scrape several installations, which have models of the same names.
_NAMESPACE = 'namespace=~"$namespace"'
# Of what gateways and replicas export the name, and the brace behind it if it has matchers.
_SERIES = re.compile(r"((?:\bsluice_|:tensorflow:serving:)\w+)(\{)?")

# Grafana's grid is 24 wide: two panels in a row.
WIDE, HIGH = 12, 8


class Row(NamedTuple):
    """A row of a dashboard: its title, and the panels below it from left to right."""

    title: str
    panels: tuple[timeseries.Panel | stat.Panel, ...]


def board(uid: str, title: str, description: str, *rows: Row) -> Dashboard:
    """A dashboard of these rows, which asks for the data source, for namespaces, and for models."""
    namespaces = (
        QueryVariable("namespace")
        .datasource(SOURCE)
        .query("label_values(sluice_build_info, namespace)")
        .multi(True)
        .include_all(True)
        .all_value(".*")  # also where series have no such label
    )
    models = (
        QueryVariable("model")
        .datasource(SOURCE)
        .query(f"label_values(sluice_queue_depth{{{_NAMESPACE}}}, model)")
        .multi(True)
        .include_all(True)
    )
    made = (
        Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["sluice"])
        .refresh("15s")
        .time("now-1h", "now")
        .with_variable(DatasourceVariable("datasource").type("prometheus"))
        .with_variable(namespaces)
        .with_variable(models)
    )
    for row in rows:
        made = made.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            made = made.with_panel(panel)
    return made


def query(expression: str, legend: str) -> prometheus.Dataquery:
    """One PromQL expression, of the chosen namespaces, and how its series are called."""
    return prometheus.Dataquery().expr(_SERIES.sub(_of_namespaces, expression)).legend_format(legend)


def _of_namespaces(series: re.Match[str]) -> str:
    name, brace = series.groups()
    return f"{name}{{{_NAMESPACE}," if brace else f"{name}{{{_NAMESPACE}}}"


def lines(
    title: str,
    description: str,
    *queries: prometheus.Dataquery,
    unit: str = "short",
    stacked: bool = False,
) -> timeseries.Panel:
    """Curves over time."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(WIDE)
        .height(HIGH)
        .fill_opacity(25 if stacked else 5)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    for each in queries:
        panel = panel.with_target(each)
    return panel


def number(title: str, description: str, value: prometheus.Dataquery, unit: str = "short") -> stat.Panel:
    """One figure."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(6)
        .height(4)
        .with_target(value)
    )
