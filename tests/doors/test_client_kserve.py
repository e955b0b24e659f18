"""What KServe's `InferenceRESTClient` sends: the Open Inference Protocol as plain JSON, over httpx."""

from __future__ import annotations

import base64

import httpx

from tests.doors.conftest import Live


def test_the_calls_of_the_rest_client(live: Live, photograph: bytes) -> None:
    with httpx.Client(base_url=live.http_url) as client:
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/v2/health/ready").json() == {"ready": True}
        ready = client.get("/v2/models/digits/ready").json()
        assert (ready["name"], ready["ready"]) == ("digits", True)
        metadata = client.get("/v2/models/digits").json()
        assert metadata["platform"] == "tensorflow_savedmodel"
        pixels = [0] * 64
        answer = client.post(
            "/v2/models/digits/infer",
            json={
                "id": "a1",
                "inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": pixels}],
                "outputs": [{"name": "scores"}],
            },
        )
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert (found["id"], found["model_name"]) == ("a1", "digits")
        (output,) = found["outputs"]
        assert (output["name"], output["datatype"], output["shape"]) == ("scores", "FP32", [1, 10])
        assert abs(sum(output["data"]) - 1) < 1e-3


def test_nested_data_and_a_version_are_taken(live: Live, photograph: bytes) -> None:
    nested = [[[[0]] * 8] * 8]
    answer = httpx.post(
        f"{live.http_url}/v2/models/digits/versions/{live.version}/infer",
        json={"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": nested}]},
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["model_version"] == str(live.version)


def test_the_photograph_through_the_v1_protocol(live: Live, photograph: bytes) -> None:
    """KServe's V1 predict has TensorFlow Serving's path and body."""
    answer = httpx.post(
        f"{live.http_url}/v1/models/digits:predict",
        json={
            "signature_name": "serving_bytes",
            "instances": [{"b64": base64.b64encode(photograph).decode()}],
        },
    )
    assert answer.status_code == 200, answer.text
    (scores,) = answer.json()["predictions"]
    assert scores.index(max(scores)) == live.index
