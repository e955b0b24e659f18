"""What manifests ask of metrics holds where a gateway is several processes, whose series say of which."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.tools import check, manifests, metric_names
from tests.observability.scene import have_prometheus, write_rules

CASES = check.K8S.parent / "tests/observability/rules_test.yml"
WORKERS = ("0", "1")
needs_promtool = pytest.mark.skipif(not have_prometheus(), reason="promtool is not installed: make test-deps")


def promtool(folder: Path, tests: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    write_rules(folder / "rules.yml")
    cases = folder / "cases.yml"
    cases.write_text(
        yaml.safe_dump({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests})
    )
    return subprocess.run(
        ["promtool", "test", "rules", str(cases)], capture_output=True, text=True, check=False
    )


def of_two_workers(series: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The series of one process as those of two: one has counted it all, and both see the same."""
    name = str(series["series"]).partition("{")[0]
    is_counter = name.endswith(("_total", "_count", "_bucket"))
    for worker in WORKERS:
        idle = is_counter and worker == "1"
        yield {
            "series": series["series"].replace("{", f'{{worker="{worker}",', 1),
            "values": "0x500" if idle else series["values"],
        }


@needs_promtool
def test_alerts_say_the_same_of_two_workers_as_of_one_process(tmp_path: Path) -> None:
    tests = yaml.safe_load(CASES.read_text())["tests"]
    assert len(tests) > 20
    for test in tests:
        test["input_series"] = [each for series in test["input_series"] for each in of_two_workers(series)]
    done = promtool(tmp_path, tests)
    assert (done.returncode, "SUCCESS" in done.stdout) == (0, True), done.stdout + done.stderr


def series_of(expression: str) -> Iterator[str]:
    """Series of two pods with two workers each for all that the expression reads."""
    for selector in metric_names.selectors(expression):
        known = metric_names.exported().get(selector.name, metric_names.Series("gauge", frozenset()))
        labels = dict.fromkeys(known.labels, "x") | ({"le": "1"} if selector.name.endswith("_bucket") else {})
        for pod, worker in itertools.product("pq", WORKERS):
            of = {**labels, "namespace": "sluice", "pod": pod, "instance": pod, "worker": worker}
            given = ",".join(f'{label}="{value}"' for label, value in of.items())
            yield f"{selector.name}{{{given}}}"


def faults(expressions: Iterable[str], folder: Path) -> str:
    """What Prometheus says of expressions that it cannot compute from the series of two pods' workers.

    None of them is expected to give what it gives: that it says `got` of some shows that it computed them.
    """
    given = [metric_names.plain(each) for each in expressions]
    series = sorted({each for expression in given for each in series_of(expression)})
    test = {
        "interval": "1m",
        "input_series": [{"series": each, "values": "1+1x20"} for each in series],
        "promql_expr_test": [{"expr": each, "eval_time": "10m"} for each in given],
    }
    done = promtool(folder, [test])
    said = done.stdout + done.stderr
    assert "got:" in said or "err:" in said, said
    return "\n".join(line for line in said.splitlines() if "err:" in line)


@needs_promtool
def test_every_expression_can_be_computed_where_series_are_of_workers(tmp_path: Path) -> None:
    asked = [
        expression
        for overlay in ("overlays/production", "components/autoscaling-keda")
        for _, expression in metric_names.expressions(manifests.build(check.K8S / overlay))
    ]
    assert len(asked) > 60
    assert faults(asked, tmp_path) == ""


@needs_promtool
def test_an_expression_that_confuses_workers_would_be_found(tmp_path: Path) -> None:
    careless = "sluice_requests_in_flight / on (pod) sluice_requests_in_flight_limit"
    assert "duplicate series" in faults([careless], tmp_path)


def test_a_pod_of_several_processes_is_asked_for_as_much_more(tmp_path: Path) -> None:
    """Limits, resources and the autoscalers' targets grow with the processes."""
    one = manifests.build(check.K8S / "overlays/production")
    several = manifests.build(check.folder_of("several processes in a pod", check.K8S, tmp_path))
    by_keda = manifests.build(check.folder_of("KEDA", check.K8S, tmp_path))
    count = int(environment(several)["SLUICE_WORKERS"])
    assert count > 1
    for name in ("SLUICE_MAX_IN_FLIGHT", "SLUICE_MAX_IN_FLIGHT_BYTES", "SLUICE_DECODE_THREADS"):
        assert int(environment(several)[name]) == count * int(environment(one)[name])
    assert in_flight_target(several) == count * in_flight_target(one)
    scaled = {each["metadata"]["name"]: each for each in manifests.of_kind(by_keda, "ScaledObject")}
    assert int(scaled["gateway"]["spec"]["triggers"][0]["metadata"]["threshold"]) == in_flight_target(several)


def environment(documents: list[manifests.Document]) -> dict[str, str]:
    """The gateway's variables."""
    (config,) = (
        each for each in manifests.of_kind(documents, "ConfigMap")
        if each["metadata"]["name"].startswith("gateway-")
    )  # fmt: skip
    (container,) = (
        each for each in manifests.containers(documents) if each.where.endswith("gateway: gateway")
    )
    given = {each["name"]: each["value"] for each in container.spec["env"]}
    return {**config["data"], **given}


def in_flight_target(documents: list[manifests.Document]) -> int:
    """How many requests in flight a pod has before another one comes."""
    (scaler,) = manifests.of_kind(documents, "HorizontalPodAutoscaler")
    return int(scaler["spec"]["metrics"][0]["pods"]["target"]["averageValue"])
