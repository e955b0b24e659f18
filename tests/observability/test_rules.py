"""The alerting rules by promtool's own checks and tests, and the runbook's sections."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from k8s.dashboards.__main__ import FOLDER, texts
from k8s.tools import manifests, metric_names
from k8s.tools.check import K8S, folder_of
from serving.telemetry.metrics import Metrics
from serving.telemetry.scrape import exposition
from tests.observability.scene import RULES, have_prometheus, write_rules

RUNBOOK = (K8S.parent / "docs" / "runbook.md").read_text()
CASES = Path(__file__).with_name("rules_test.yml")
needs_promtool = pytest.mark.skipif(not have_prometheus(), reason="promtool is not installed: make test-deps")


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_promtool
def test_promtool_finds_no_fault(tmp_path: Path) -> None:
    assert f"{len(alerts()) + 10} rules found" in promtool(
        "check", "rules", "--lint=all", str(write_rules(tmp_path / "rules.yml"))
    )


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    write_rules(tmp_path / "rules.yml")
    cases = tmp_path / "cases.yml"
    cases.write_text(CASES.read_text())
    assert "SUCCESS" in promtool("test", "rules", str(cases))


@needs_promtool
def test_replicas_are_scaled_by_a_number_also_where_nobody_asks(tmp_path: Path) -> None:
    documents = manifests.build(folder_of("KEDA", K8S, tmp_path))
    (query,) = [
        trigger["metadata"]["query"]
        for each in manifests.of_kind(documents, "ScaledObject")
        if each["metadata"]["name"] == "model-server"
        for trigger in each["spec"]["triggers"]
    ]
    labels = 'namespace="sluice",stage="queue"'

    def case(growing: str, expected: float) -> dict[str, Any]:
        return {
            "interval": "15s",
            "input_series": [
                {"series": f'sluice_stage_duration_seconds_bucket{{{labels},le="{le}"}}', "values": values}
                for le, values in (("0.05", "7x20"), ("0.1", f"7+{growing}x20"), ("+Inf", f"7+{growing}x20"))
            ],
            "promql_expr_test": [
                {"expr": query, "eval_time": "4m", "exp_samples": [{"labels": "{}", "value": expected}]}
            ],
        }

    path = tmp_path / "cases.yml"
    path.write_text(yaml.safe_dump({"tests": [case("0", 0.0), case("10", 0.0975)]}))
    assert "SUCCESS" in promtool("test", "rules", str(path))


def test_every_alert_is_tested_both_ways() -> None:
    expected: dict[str, set[bool]] = {}
    for test in yaml.safe_load(CASES.read_text())["tests"]:
        for case in test.get("alert_rule_test", []):
            expected.setdefault(case["alertname"], set()).add(bool(case.get("exp_alerts")))
    assert expected.keys() == {alert["alert"] for alert in alerts()}
    assert [name for name, seen in expected.items() if seen != {True, False}] == []


def test_every_alert_has_a_section_in_the_runbook_and_no_section_is_left_over() -> None:
    sections = set(re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE))
    assert sections == {alert["alert"] for alert in alerts()}
    for alert in alerts():
        assert alert["annotations"]["runbook"] == f"docs/runbook.md#{alert['alert'].lower()}"
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert alert["annotations"]["summary"]


def test_every_limit_of_a_latency_is_one_that_is_counted() -> None:
    """Without its bucket a rule would have no data, and an alert on it would be silent."""
    metrics = Metrics(CollectorRegistry())
    metrics.request_seconds.labels("http", "digits", "1").observe(0.1)
    page, _ = exposition(metrics.registry, "")
    documents = manifests.build(K8S / "components/monitoring")
    asked = {
        (selector.name, matcher.value)
        for _, expression in metric_names.expressions(documents)
        for selector in metric_names.selectors(expression)
        for matcher in selector.matchers.matchers
        if matcher.name == "le"
    }
    assert asked
    for name, limit in asked:
        assert re.search(rf'^{name}{{.*le="{re.escape(limit)}"', page.decode(), re.MULTILINE), (name, limit)


def test_a_dashboard_shows_the_chosen_installations_only() -> None:
    documents = manifests.build(K8S / "components/monitoring")
    panels = [
        expression
        for where, expression in metric_names.expressions(documents)
        if where.startswith("ConfigMap/")
    ]
    asked = [each for expression in panels for each in metric_names.selectors(expression)]
    ours = [each for each in asked if "sluice_" in each.name or "tensorflow" in each.name]
    assert len(ours) > 40
    for each in ours:
        assert "namespace" in {matcher.name for matcher in each.matchers.matchers}, each


@pytest.mark.parametrize("name", sorted(texts()))
def test_a_dashboard_is_what_the_code_says_and_each_panel_says_what_it_shows(name: str) -> None:
    assert (FOLDER / name).read_text() == texts()[name]
    board = json.loads(texts()[name])
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len(panels) >= 9
    assert all(panel["description"] and panel["targets"] for panel in panels)
