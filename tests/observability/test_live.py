"""A live gateway as a real Prometheus, a terminal and a signal see it."""

from __future__ import annotations

import re
import signal
import subprocess
from collections import Counter

import httpx
import promql_parser
import pytest

from k8s.dashboards.__main__ import FOLDER, texts
from k8s.tools import metric_names
from serving.commands.top import parse, rows
from tests.observability.scene import Scene, until
from tests.support.processes import COMMAND

# What cannot have data here, and why.
ELSEWHERE = {
    "DCGM_FI_DEV_GPU_UTIL": "this machine has no GPU",
    "DCGM_FI_DEV_FB_USED": "this machine has no GPU",
    "DCGM_FI_DEV_FB_FREE": "this machine has no GPU",
}


def test_prometheus_counts_exactly_what_clients_sent(scene: Scene) -> None:
    series = scene.query("sum by (protocol, outcome) (sluice_requests_total)", scene.loaded_at)
    counted = Counter(
        {(each["metric"]["protocol"], each["metric"]["outcome"]): int(each["value"][1]) for each in series}
    )
    assert +counted == scene.sent
    assert {"unauthenticated", "deadline-exceeded", "bad-image"} <= {outcome for _, outcome in scene.sent}
    (durations,) = scene.query("sum(sluice_request_duration_seconds_count)", scene.loaded_at)
    assert int(durations["value"][1]) == scene.sent.total()
    arms = scene.query('sum by (arm) (sluice_requests_total{outcome="ok"}) > 0', scene.loaded_at)
    assert {each["metric"]["arm"] for each in arms} == {"stable", "candidate"}


@pytest.mark.parametrize("name", sorted(texts()))
def test_each_expression_of_a_dashboard_has_data(scene: Scene, name: str) -> None:
    expressions = [expression for _, expression in metric_names._panels(name, (FOLDER / name).read_text())]
    assert len(expressions) >= 9
    empty, with_data = [], 0
    for expression in expressions:
        plain = expression.replace("$__rate_interval", "10s").replace("$model", "digits")
        plain = plain.replace("$namespace", ".*")
        if scene.query(plain, scene.loaded_at):
            with_data += 1
        else:
            names = {each.name for each in metric_names._selectors(promql_parser.parse(plain))}
            if not names & ELSEWHERE.keys():
                empty.append(plain)
    print(
        f"{name}: {len(expressions)} expressions, {with_data} with data, {len(empty)} without for no reason"
    )
    assert empty == []


def test_the_rules_are_evaluated_and_none_fails(scene: Scene) -> None:
    groups = httpx.get(f"{scene.prometheus_url}/api/v1/rules", timeout=30).json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 20
    assert [rule["name"] for rule in rules if rule["health"] == "err"] == []
    assert scene.query("sluice:requests:rate5m", scene.loaded_at)


def test_top_shows_rates_by_version(scene: Scene) -> None:
    done = subprocess.run(
        [*COMMAND, "top", "--once", "--interval=0.2", f"--url={scene.http_url}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(r"digits\s*│\s*1\s*│", done.stdout), done.stdout
    assert "1 of 1 replicas up" in done.stdout
    after = parse(httpx.get(f"{scene.http_url}/metrics", timeout=60).text, 10.0)
    found = rows(parse("", 0.0), after)
    answered = sum(row.requests_per_s for row in found) * 10
    assert round(answered) >= scene.sent.total()  # rates, made counts again
    assert all(0 < row.median_s <= row.p99_s for row in found if row.requests_per_s)


def test_top_says_what_is_wrong_where_nobody_answers() -> None:
    done = subprocess.run(
        [*COMMAND, "top", "--once", "--url=http://127.0.0.1:9"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no gateway answers at http://127.0.0.1:9" in done.stderr


def test_sigusr1_dumps_tasks_and_threads_and_nothing_stops(scene: Scene) -> None:
    log = scene.folder / "gateway.log"
    scene.gateway.send_signal(signal.SIGUSR1)
    text = until(lambda: log.read_text() if "threads\n" in log.read_text() else "", "the dump")
    assert re.search(r"^\d+ tasks$", text, re.MULTILINE)
    assert "catalog.py" in text
    assert "MainThread" in text
    assert httpx.get(f"{scene.http_url}/healthz", timeout=60).status_code == 200


def test_the_log_has_a_line_for_failures_and_never_a_key(scene: Scene) -> None:
    text = (scene.folder / "gateway.log").read_text()
    lines = [line for line in text.splitlines() if '"event": "request"' in line]
    assert any('"outcome": "bad-image"' in line and '"trace_id": "' in line for line in lines)
    assert scene.key not in text
