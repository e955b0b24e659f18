"""Hold the metrics that autoscalers, rules and dashboards name against those that the gateway has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import promql_parser

from k8s.tools.manifests import Document, name_of, of_kind
from serving.metrics_page import families

# What others export, and these manifests may name: TensorFlow Serving, NVIDIA's exporter, Prometheus itself.
_OTHERS = re.compile(r"^(:tensorflow:\w+(:\w+)*|DCGM_FI_\w+|up|scrape_\w+|ALERTS|kube_\w+|container_\w+)$")
# Labels that come from where a target is, or which worker of a gateway speaks, not from the metric.
_TARGET_LABELS = frozenset(
    {
        "namespace",
        "pod",
        "job",
        "instance",
        "container",
        "endpoint",
        "node",
        "service",
        "worker",
        "le",
        "__name__",
    }
)
_SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("", "_sum", "_count"),
    "info": ("_info",),
}


class Series(NamedTuple):
    """One name on the metrics page: its type and its labels."""

    kind: str
    labels: frozenset[str]


@cache
def exported() -> Mapping[str, Series]:
    """Every name that the gateway's metrics page can have, as `docs/metrics.md` is written."""
    return {
        family.name + suffix: Series(family.type, frozenset(labels))
        for family, labels in families()
        for suffix in _SUFFIXES[family.type]
    }


def faults(documents: Sequence[Document]) -> Iterator[str]:
    """Metrics and labels that do not exist, and expressions that are none."""
    recorded = {
        rule["record"]
        for document in of_kind(documents, "PrometheusRule")
        for group in document["spec"]["groups"]
        for rule in group.get("rules", ())
        if "record" in rule
    }
    for document in of_kind(documents, "HorizontalPodAutoscaler"):
        for metric in document["spec"].get("metrics", ()):
            yield from (f"{name_of(document)}: {fault}" for fault in _pods_metric(metric))
    for where, expression in expressions(documents):
        yield from (f"{where}: {fault}" for fault in check_expression(expression, recorded))


def _pods_metric(metric: Mapping[str, Any]) -> Iterator[str]:
    if metric["type"] != "Pods":
        return
    name = metric["pods"]["metric"]["name"]
    if name not in exported():
        yield f"the gateway has no metric {name}"
    elif exported()[name].kind != "gauge":
        yield f"{name} is a {exported()[name].kind}; an autoscaler needs a gauge"


def expressions(documents: Sequence[Document]) -> Iterator[tuple[str, str]]:
    """Every PromQL expression, with where it is."""
    for document in of_kind(documents, "PrometheusRule"):
        for group in document["spec"]["groups"]:
            for rule in group.get("rules", ()):
                name = rule.get("alert") or rule.get("record")
                yield f"{name_of(document)}: {name}", str(rule["expr"])
    for document in of_kind(documents, "ScaledObject"):
        for trigger in document["spec"]["triggers"]:
            if trigger["type"] == "prometheus":
                yield name_of(document), trigger["metadata"]["query"]
    for document in of_kind(documents, "ConfigMap"):
        if "grafana_dashboard" in document["metadata"].get("labels", {}):
            for key, text in document.get("data", {}).items():
                yield from _panels(f"{name_of(document)}: {key}", text)


def _panels(where: str, text: str) -> Iterator[tuple[str, str]]:
    try:
        pending = list(json.loads(text).get("panels", ()))
    except json.JSONDecodeError:
        return  # said by the check of the programs that read it
    while pending:
        panel = pending.pop()
        pending += panel.get("panels", ())
        for target in panel.get("targets", ()):
            if "expr" in target:
                yield f"{where}: {panel.get('title')}", target["expr"]


def plain(expression: str) -> str:
    """The expression with a value in the place of each of Grafana's variables."""
    timed = re.sub(r"\$__(rate_)?interval|\$__range|\$\{\w+\}(?=\])", "5m", expression)
    return re.sub(r"\$\{?\w+(:\w+)?\}?", "x", timed)


def check_expression(expression: str, recorded: set[str]) -> Iterator[str]:
    """Faults of one expression; Grafana's variables stand for any value."""
    try:
        found = selectors(expression)
    except ValueError as error:
        yield f"not PromQL: {error}"
        return
    for selector in found:
        name = selector.name or ""
        if name in recorded or _OTHERS.match(name):
            continue
        if name not in exported():
            yield f"the gateway has no metric {name or '(unnamed)'}"
            continue
        for matcher in selector.matchers.matchers:
            if matcher.name not in exported()[name].labels | _TARGET_LABELS:
                yield f"{name} has no label {matcher.name}"


def selectors(expression: str) -> list[Any]:
    """The parser's selectors of series in an expression; raises ValueError if it is no PromQL."""
    return list(_selectors(promql_parser.parse(plain(expression))))


def _selectors(node: Any) -> Iterator[Any]:
    if hasattr(node, "matchers"):
        yield node
    for field in ("expr", "lhs", "rhs", "args", "param", "vector_selector"):
        child = getattr(node, field, None)
        for each in child if isinstance(child, list) else [child]:
            if each is not None:
                yield from _selectors(each)
