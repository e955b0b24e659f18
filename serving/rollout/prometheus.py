"""The counts of all gateways by way of Prometheus: each exports its own, and the leader queries them all."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

import httpx
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from serving.errors import Unavailable
from serving.rollout.counts import Counts
from serving.rollout.steering import Steering

METRIC = "sluice_rollout_events"
# What every gateway exports from its start; counts of a model begin with its first request.
PRESENCE = "sluice_requests_in_flight"

_BY_CLASS = ("compared", "agreed")
# Prefix of a name that tells a process from its predecessor at the same address: its counts start from zero.
_RUN = "run"
_TIMEOUT_S = 5.0


class SteeringCollector(Collector):
    """Exports what a gateway has counted for rollouts.

    Args:
        steering: The gateway's own.
        group: The name under which a class is counted, from model, version and label; if there are many
            classes, the rarer ones share a name.
    """

    def __init__(self, steering: Steering, group: Callable[[str, str, str], str]) -> None:
        self._steering = steering
        self._group = group
        self._names: dict[tuple[str, str], str] = {}  # of each count, by model and its own name
        self._run = f"{_RUN}/{secrets.token_hex(4)}"

    def collect(self) -> Iterator[CounterMetricFamily]:
        """See `Collector.collect`. Names are of versions, weights and groups of classes: all bounded."""
        family = CounterMetricFamily(
            METRIC, "What rollouts count, by name: kind/version/detail.", labels=("model", "name")
        )
        names: dict[tuple[str, str], str] = {}
        for model in self._steering.splits():
            grouped: Counts = {self._run: 1.0}
            for name, number in self._steering.counts(model).items():
                shown = names[model, name] = self._name(model, name)
                grouped[shown] = grouped.get(shown, 0.0) + number
            for name, number in grouped.items():
                family.add_metric((model, name), number)
        self._names = names
        yield family

    def _name(self, model: str, name: str) -> str:
        # A name stays the same after the version's classes are forgotten, a while after it left: what was
        # counted under one name must not be counted again under another.
        known = self._names.get((model, name))
        kind, version, *label = name.split("/", 2)
        if known is not None or kind not in _BY_CLASS or not label:
            return known or name
        return f"{kind}/{version}/{self._group(model, version, label[0])}"


class PrometheusCounts:
    """Queries a Prometheus server for every gateway's counts.

    Args:
        url: Where it is, such as `http://prometheus:9090`.
        selector: Further label matchers, such as `namespace="serving"`.
    """

    def __init__(self, url: str, selector: str = "") -> None:
        self._client = httpx.Client(base_url=url, timeout=_TIMEOUT_S)
        self._selector = selector

    def publish(self, counts: dict[str, Counts]) -> None:
        """See `CountSource.publish`: Prometheus scrapes them."""

    def collect(self, model: str) -> dict[str, Counts]:
        """See `CountSource.collect`.

        Processes are told apart by `instance`, by `worker` within a pod, and by a random name of their own.

        A gateway that has counted nothing yet has no counts. If there is no gateway at all, the counts are
        Unavailable: Prometheus has lost its targets, and what it does not know is not zero.
        """
        escaped = model.replace("\\", "\\\\").replace('"', '\\"')
        matchers = ", ".join(filter(None, (f'model="{escaped}"', self._selector)))
        query = (
            f"sum by (instance, worker, name) ({METRIC}_total{{{matchers}}})"
            f" or sum by (instance, worker) ({PRESENCE}{{{self._selector}}})"
        )
        try:
            answer = self._client.get("/api/v1/query", params={"query": query})
            if not answer.is_success:  # httpx's own message has the URL, which may have a password
                raise Unavailable(f"Prometheus cannot be queried: it answered {answer.status_code}")
            series = answer.json()["data"]["result"]
            found: dict[str, Counts] = {}
            for each in series:
                labels = each["metric"]
                process = "/".join(filter(None, (labels.get("instance"), labels.get("worker"))))
                counts = found.setdefault(process, {})
                if "name" in labels:
                    counts[labels["name"]] = float(each["value"][1])
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise Unavailable(f"Prometheus cannot be queried: {error}") from error
        if not found:
            selected = f" with {self._selector}" if self._selector else ""
            raise Unavailable(
                f"Prometheus has no metrics of any gateway ({PRESENCE}{selected}): it must scrape them all"
            )
        return dict(_by_run(process, counts) for process, counts in found.items())


def _by_run(process: str, counts: Counts) -> tuple[str, Counts]:
    """The process's id, made unique by its own name if it exports one, and its counts without that name."""
    runs = sorted(name for name in counts if name.startswith(f"{_RUN}/"))
    return "/".join((process, *runs)), {name: number for name, number in counts.items() if name not in runs}
