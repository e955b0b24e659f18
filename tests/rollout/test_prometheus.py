"""Prometheus as the source of the counts."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from prometheus_client import generate_latest

from serving.errors import Unavailable
from serving.main import new_metrics
from serving.rollout.prometheus import PRESENCE, PrometheusCounts


@contextmanager
def prometheus(answer: Any, status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """A server that answers queries so; its address, and the queries that came."""
    queries: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            queries.append(parse_qs(urlsplit(self.path).query)["query"][0])
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", queries
    finally:
        server.shutdown()
        server.server_close()


def test_counts_come_from_prometheus_by_gateway() -> None:
    series = [
        {"metric": {"instance": "a:8080", "name": "calls/2"}, "value": [1.0, "7"]},
        {"metric": {"instance": "b:8080", "worker": "0", "name": "calls/2"}, "value": [1.0, "3"]},
        {"metric": {"instance": "b:8080", "worker": "1", "name": "calls/2"}, "value": [1.0, "4"]},
        {"metric": {"instance": "a:8080"}, "value": [1.0, "2"]},
        {"metric": {"instance": "c:8080"}, "value": [1.0, "0"]},
        {"metric": {"instance": "d:8080", "name": "run/07af"}, "value": [1.0, "1"]},
        {"metric": {"instance": "d:8080", "name": "calls/2"}, "value": [1.0, "5"]},
    ]
    with prometheus({"data": {"result": series}}) as (url, queries):
        found = PrometheusCounts(url).collect('di"gits')
    assert found == {
        "a:8080": {"calls/2": 7.0},
        "b:8080/0": {"calls/2": 3.0},
        "b:8080/1": {"calls/2": 4.0},
        "c:8080": {},
        "d:8080/run/07af": {"calls/2": 5.0},
    }
    (query,) = queries
    assert query == (
        'sum by (instance, worker, name) (sluice_rollout_events_total{model="di\\"gits"})'
        " or sum by (instance, worker) (sluice_requests_in_flight{})"
    )


def test_a_prometheus_that_scrapes_no_gateway_is_unavailable_and_one_without_requests_is_not() -> None:
    told = r'no metrics of any gateway .* with namespace="serving"'
    with prometheus({"data": {"result": []}}) as (url, queries), pytest.raises(Unavailable, match=told):
        PrometheusCounts(url, 'namespace="serving"').collect("digits")
    assert queries[0].endswith(' (sluice_requests_in_flight{namespace="serving"})')
    idle = [{"metric": {"instance": "a:8080"}, "value": [1.0, "0"]}]
    with prometheus({"data": {"result": idle}}) as (url, _):
        assert PrometheusCounts(url).collect("digits") == {"a:8080": {}}


def test_every_gateway_exports_from_its_start_what_it_is_known_by() -> None:
    assert f"\n{PRESENCE} 0.0\n" in generate_latest(new_metrics().registry).decode()


@pytest.mark.parametrize(("answer", "status"), [({}, 200), ({"data": 3}, 200), ({}, 503)])
def test_a_prometheus_that_does_not_answer_is_unavailable(answer: Any, status: int) -> None:
    with prometheus(answer, status) as (url, _), pytest.raises(Unavailable, match="cannot be queried"):
        PrometheusCounts(url).collect("digits")


def test_a_password_for_prometheus_is_in_no_error() -> None:
    with prometheus({}, 401) as (url, _), pytest.raises(Unavailable) as refused:
        PrometheusCounts(url.replace("//", "//me:secret@")).collect("digits")
    assert refused.value.message == "Prometheus cannot be queried: it answered 401"
