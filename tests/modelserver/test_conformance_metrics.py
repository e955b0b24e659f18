"""What is counted, and by which names; true of the original, too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from serving import protos
from tests.modelserver.process import ServerProcess, until
from tests.modelserver.test_conformance_predict import example, request
from tests.modelserver.test_conformance_rest import HALF


def test_the_metrics_have_the_originals_names(server: ServerProcess, zoo: Path) -> None:
    assert server.rest("POST", f"{HALF}:predict", {"instances": [1.0]})[0] == 200
    assert server.rest("POST", f"{HALF}/versions/77:predict", {"instances": [1.0]})[0] == 404
    assert server.rest("POST", f"{HALF}:predict", {"instances": []})[0] == 400

    def page() -> str:
        status, _, text = server.http("GET", "/monitoring/metrics")
        assert status == 200
        return text.decode()

    def are_counted() -> bool:
        counted = ':tensorflow:serving:request_count{model_name="half_plus_two",status="'
        return all(f'{counted}{code}"}}' in page() for code in ("OK", "NOT_FOUND", "INVALID_ARGUMENT"))

    until(are_counted, "the requests are counted")
    text = page()
    assert "# TYPE :tensorflow:serving:request_count counter" in text
    assert "# TYPE :tensorflow:serving:request_latency histogram" in text
    latency = ':tensorflow:serving:request_latency_count{model_name="half_plus_two",'
    assert f'{latency}API="predict",entrypoint="REST"}}' in text
    limits = re.findall(
        ':request_latency_bucket{model_name="half_plus_two",API="predict",entrypoint="REST",le="(.*)"}', text
    )
    assert limits[:3] == ["10", "18", "32.4"]  # microseconds
    assert limits[-2:] == ["1.47476e+09", "+Inf"]
    assert ':serving:runtime_latency_count{model_name="half_plus_two",API="Predict",runtime="TF1"}' in text
    path = zoo / "half_plus_two" / "1"
    assert f':tensorflow:cc:saved_model:load_attempt_count{{model_path="{path}",status="success"}} 1' in text
    assert f':tensorflow:cc:saved_model:load_latency{{model_path="{path}"}}' in text
    assert server.http("GET", "/monitoring/metrics?x=1")[0] == 400


def number(page: str, series: str) -> float:
    """The value of a series; 0 if there is none."""
    found = re.search(f"^{re.escape(series)} (.*)$", page, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_calls_over_grpc_and_their_examples_are_counted(server: ServerProcess) -> None:
    model, serving = "half_plus_two_tf1", ":tensorflow:serving"
    latency = f'{serving}:request_latency_count{{{{model_name="{model}",API="{{}}",entrypoint="GRPC"}}}}'
    names = {
        **{method: latency.format(method) for method in ("Predict", "Classify", "Regress")},
        "examples": f'{serving}:request_example_count_total{{model="{model}"}}',
        "calls with examples": f'{serving}:request_example_counts_count{{model="{model}"}}',
        "examples of these": f'{serving}:request_example_counts_sum{{model="{model}"}}',
    }

    def found() -> dict[str, float]:
        page = server.http("GET", "/monitoring/metrics")[2].decode()
        return {what: number(page, series) for what, series in names.items()}

    def call_with_examples(method: str, count: int, **fields: Any) -> None:
        message = protos.methods(protos.PREDICTION_SERVICE)[method][0](**fields)
        message.input.example_list.examples.extend([example(x=1.0)] * count)
        server.call(protos.PREDICTION_SERVICE, method, message)

    before = found()
    server.predict(request(model, x=np.ones([1, 1], np.float32)))
    classify, regress = (
        {"name": model, "signature_name": f"{kind}_x_to_y"} for kind in ("classify", "regress")
    )
    task = {"model_spec": regress, "method_name": "tensorflow/serving/regress"}
    call_with_examples("Classify", 2, model_spec=classify)
    call_with_examples("Regress", 3, model_spec=regress)
    call_with_examples("MultiInference", 4, tasks=[task])
    once = dict.fromkeys(("Predict", "Classify", "Regress"), 1.0)
    expected = {**once, "examples": 9.0, "calls with examples": 3.0, "examples of these": 9.0}

    def counted() -> bool:
        return {what: value - before[what] for what, value in found().items()} == expected

    until(counted, "all of them are counted")
