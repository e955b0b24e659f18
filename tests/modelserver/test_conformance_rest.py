"""The REST API, as `curl` sees it in TensorFlow Serving's guide; true of the original, too."""

from __future__ import annotations

import base64
import errno
import gzip
import json
import socket
from typing import Any

import pytest

from tests.modelserver.process import IS_OURS, ServerProcess

HALF = "/v1/models/half_plus_two"
KINDS = "/v1/models/kinds"
TF1 = "/v1/models/half_plus_two_tf1"


def test_the_guides_predict_gives_the_documented_answer(server: ServerProcess) -> None:
    status, headers, body = server.http("POST", f"{HALF}/versions/1:predict", {"instances": [1.0, 2.0, 5.0]})
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert body.decode() == '{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}'


def test_the_guides_predict_of_its_tf1_model_whose_input_is_a_column(server: ServerProcess) -> None:
    """The signature's shape is [-1, 1]; the guide sends a list of numbers all the same."""
    assert server.rest("POST", f"{TF1}:predict", {"instances": [1.0, 2.0, 5.0]}) == (
        200,
        {"predictions": [2.5, 3.0, 4.5]},
    )


def test_column_form(server: ServerProcess) -> None:
    status, answer = server.rest("POST", f"{HALF}/labels/stable:predict", {"inputs": [1.0, 2.0]})
    assert (status, answer) == (200, {"outputs": [2.5, 3.0]})
    status, answer = server.rest("POST", f"{HALF}/labels/canary:predict", {"inputs": {"x": [1.0]}})
    assert (status, answer) == (200, {"outputs": [3.5]})


def test_the_status_of_the_guide(server: ServerProcess) -> None:
    status, answer = server.rest("GET", f"{HALF}/versions/1")
    expected = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert (status, answer) == (200, {"model_version_status": [expected]})
    _, everything = server.rest("GET", HALF)
    assert [entry["version"] for entry in everything["model_version_status"]] == ["2", "1"]
    assert server.rest("GET", f"{HALF}/labels/nope")[0] == 200  # a label is ignored here


def test_metadata(server: ServerProcess) -> None:
    status, answer = server.rest("GET", f"{TF1}/metadata")
    assert status == 200
    assert answer["model_spec"]["name"] == "half_plus_two_tf1"
    assert answer["model_spec"]["version"] == "123"
    signature = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert [dim["size"] for dim in signature["inputs"]["x"]["tensor_shape"]["dim"]] == ["-1", "1"]


def test_rows_with_named_tensors(server: ServerProcess) -> None:
    body = {"signature_name": "two", "instances": [{"a": [1, 2], "b": 3}, {"b": 4, "a": [0.5, 0.5]}]}
    status, answer = server.rest("POST", f"{KINDS}:predict", body)
    assert status == 200
    assert answer == {"predictions": [{"total": 6.0, "doubled": 6}, {"total": 5.0, "doubled": 8}]}


def test_bytes_go_in_as_b64_and_come_out_by_their_names(server: ServerProcess) -> None:
    data = base64.b64encode(b"\xff\x00\x01").decode()
    body = {"signature_name": "strings", "instances": [{"b64": data}, "text"]}
    status, answer = server.rest("POST", f"{KINDS}:predict", body)
    assert status == 200
    assert [row["raw_bytes"] for row in answer["predictions"]] == [
        {"b64": data},
        {"b64": base64.b64encode(b"text").decode()},
    ]
    assert answer["predictions"][1]["text"] == "text!"


def test_white_space_in_b64_goes_for_nothing(server: ServerProcess) -> None:
    data = bytes(range(256))
    body = {"signature_name": "strings", "instances": [{"b64": base64.encodebytes(data).decode()}]}
    status, answer = server.rest("POST", f"{KINDS}:predict", body)
    assert status == 200
    assert answer["predictions"][0]["raw_bytes"] == {"b64": base64.b64encode(data).decode()}


@pytest.mark.parametrize(
    ("signature", "sent", "text"),
    [
        ("id_float32", "[NaN, Infinity, -Infinity]", "[NaN, Infinity, -Infinity\n    ]"),
        ("id_float32", "[0.1, 1, 1e30, 16777215]", "[0.1, 1.0, 1e+30, 16777215.0\n    ]"),
        ("id_float32", "[0.33333334]", "[0.333333343\n    ]"),
        ("id_float64", "[0.1234567890123456]", "[0.12345678901234559\n    ]"),
        ("id_int64", "[9007199254740993, -1]", "[9007199254740993, -1\n    ]"),
        ("id_bool", "[true, false]", "[true, false\n    ]"),
        ("id_string", '["naïve \\"x\\""]', '["naïve \\"x\\""\n    ]'),
    ],
)
def test_numbers_and_texts_round_trip(server: ServerProcess, signature: str, sent: str, text: str) -> None:
    body = f'{{"signature_name": "{signature}", "instances": {sent}}}'.encode()
    status, _, answer = server.http("POST", f"{KINDS}:predict", body)
    assert status == 200
    assert answer.decode() == f'{{\n    "predictions": {text}\n}}'


def test_classify_and_regress(server: ServerProcess) -> None:
    body: dict[str, Any] = {"signature_name": "classify_x_to_y", "examples": [{"x": 2.0}, {"x": [4.0]}]}
    status, answer = server.rest("POST", f"{TF1}:classify", body)
    assert (status, answer) == (200, {"results": [[["2!", 3.0]], [["4!", 4.0]]]})
    body = {"signature_name": "regress_x_to_y", "context": {"x": 8.0}, "examples": [{}, {"x": 2.0}]}
    status, answer = server.rest("POST", f"{TF1}/versions/123:regress", body)
    assert (status, answer) == (200, {"results": [6.0, 3.0]})


def test_paths_match_without_regard_to_case_and_names_are_decoded(server: ServerProcess) -> None:
    path = "/V1/Models/half%5Fplus_two/Versions/1"
    assert server.rest("POST", f"{path}:predict", {"instances": [1.0]}) == (200, {"predictions": [2.5]})
    assert server.rest("GET", f"{path}/METADATA") == server.rest("GET", f"{HALF}/versions/1")
    by_label = f"{HALF}/Labels/%73table:predict"
    assert server.rest("POST", by_label, {"instances": [1.0]}) == (200, {"predictions": [2.5]})


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/v1/models", 400, "Missing model name in request."),
        ("GET", "/v1/nope", 400, "Malformed request: GET /v1/nope"),
        ("POST", f"{HALF}:nope", 400, f"Malformed request: POST {HALF}:nope"),
        ("POST", f"{HALF}:PREDICT", 400, f"Malformed request: POST {HALF}:PREDICT"),
        ("PUT", f"{HALF}:predict", 400, f"Malformed request: PUT {HALF}:predict"),
        ("GET", "/v1/models/nope", 404, "Could not find any versions of model nope"),
        ("GET", f"{HALF}/versions/7", 404, "Could not find version 7 of model half_plus_two"),
        ("GET", "/v1/models/nope/metadata", 404, "Servable not found for request: Latest(nope)"),
        ("POST", "/v1/models/nope:predict", 404, "Servable not found for request: Latest(nope)"),
        ("POST", "/v1/models/half_plus_two/versions/9:predict", 404,
         "Servable not found for request: Specific(half_plus_two, 9)"),
        ("POST", "/v1/models/half_plus_two/versions/0:predict", 404,
         "Servable not found for request: Specific(half_plus_two, 0)"),
        ("GET", f"{HALF}/versions/{2**63 - 1}", 404,
         f"Could not find version {2**63 - 1} of model half_plus_two"),
        ("POST", "/v1/models/half_plus_two/labels/x:predict", 400, "Unrecognized servable version label: x"),
        ("POST", "/v1/models/half_plus_two/versions/-1:predict", 400, "Malformed request: POST "),
        ("POST", f"{HALF}:predict?x=1", 400, f"Malformed request: POST {HALF}:predict?x=1"),
        ("GET", f"{HALF}?x=1", 404, "Could not find any versions of model half_plus_two?x=1"),
    ],
)  # fmt: skip
def test_paths_that_lead_nowhere(
    server: ServerProcess, method: str, path: str, status: int, text: str
) -> None:
    body = None if method == "GET" else {"instances": [1.0]}
    answered, answer = server.rest(method, path, body)
    assert answered == status
    assert text in answer["error"]


@pytest.mark.parametrize(
    "version", [f"{2**63}", "9" * 20, "9" * 5000], ids=["by one", "by a digit", "by far"]
)
def test_a_version_that_is_too_large_is_none(server: ServerProcess, version: str) -> None:
    status, _, answer = server.http("GET", f"{HALF}/versions/{version}")
    assert status == 400
    if IS_OURS:  # the original answers nothing more
        assert "Failed to convert version" in json.loads(answer)["error"]


def test_a_version_may_have_leading_zeros(server: ServerProcess) -> None:
    status, answer = server.rest("GET", f"{HALF}/versions/{'0' * 30}1")
    assert status == 200
    assert [entry["version"] for entry in answer["model_version_status"]] == ["1"]


def test_paths_outside_the_api_are_not_found(server: ServerProcess) -> None:
    for path in ("/nope", "/v1"):
        assert server.http("GET", path)[0] == 404


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b"{", "JSON Parse error: "),
        (b'{"instances": [1.0 2.0]}', "JSON Parse error: "),
        (rb'{"instances": ["\ud800"]}', "JSON Parse error: The surrogate pair in string is invalid."),
        (b"[1]", "Is not object"),
        (b"{}", "Missing 'inputs' or 'instances' key"),
        (b'{"instances": []}', "No values in 'instances' array"),
        (b'{"instances": 5}', "Excepting 'instances' to be an list/array"),
        (b'{"instances": [1.0], "inputs": [1.0]}', "expecting only one of 'inputs' or 'instances'"),
        (b'{"signature_name": 5, "instances": [1.0]}', "'signature_name' key must be a string value."),
        (b'{"signature_name": "nope", "instances": [1.0]}',
         'Serving signature name: "nope" not found in signature def'),
        (b'{"instances": ["a"]}', "Type: String is not of expected type: float"),
        (b'{"instances": [null]}', "Type: Null is not of expected type: float"),
        (b'{"instances": [[1.0, 2.0], [3.0]]}', "Expecting tensor size: 2 but got: 1"),
        (b'{"inputs": [[1.0, 2.0], [3.0]]}',
         "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        (b'{"inputs": [[1.0], 3.0]}', "found at incorrect level"),
        (b'{"inputs": [1.0, [3.0]]}', "Encountered list at unexpected level: 1 expected < 1"),
        (b'{"instances": [{"z": 1.0}]}', "does not have named input: z"),
        (b'{"inputs": {"z": 1.0}}', "Missing named input: x in 'inputs' object."),
        (b'{"inputs": [16777217]}', "to float without loss of precision"),
        (b'{"inputs": [{"b64": "aGk="}]}', "is not of expected type: float"),
    ],
)  # fmt: skip
def test_bodies_that_are_wrong_say_why(server: ServerProcess, body: bytes, text: str) -> None:
    status, _, answer = server.http("POST", f"{HALF}:predict", body)
    assert status == 400
    assert text in json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("what", "body", "text"),
    [
        ("classify", {}, "key 'examples' is expected and was not found"),
        ("regress", {"examples": []}, "'examples' value is an empty array"),
        ("regress", {"examples": {"x": 1}}, "Expecting 'examples' value to be an list/array"),
        ("regress", {"examples": [5]}, "Example must be JSON object but got JSON Number"),
        ("regress", {"examples": [{"x": [1.0, "a"]}]}, "Unexpected element type in feature: x"),
        ("regress", {"examples": [{"\ud800": 1.0}]}, "The surrogate pair in string is invalid."),
        ("regress", {"examples": [{"x": None}]}, "has element with unexpected JSON type: Null"),
        ("classify", {"signature_name": "nope", "examples": [{"x": 1.0}]},
         "No signature was found with the name: nope"),
    ],
)  # fmt: skip
def test_example_bodies_that_are_wrong_say_why(
    server: ServerProcess, what: str, body: dict[str, Any], text: str
) -> None:
    status, answer = server.rest("POST", f"{TF1}:{what}", {"signature_name": "regress_x_to_y"} | body)
    assert status == 400
    assert text in answer["error"]


def test_a_type_that_json_does_not_carry_is_told_as_not_implemented(server: ServerProcess) -> None:
    status, answer = server.rest(
        "POST", f"{KINDS}:predict", {"signature_name": "id_complex64", "inputs": [1]}
    )
    assert status == 501
    assert answer["error"] == "Conversion of JSON Value: 1 to type: complex64"


def test_outputs_of_unequal_length_have_no_row_form(server: ServerProcess) -> None:
    body = {"signature_name": "uneven", "instances": [1.0, 2.0]}
    status, answer = server.rest("POST", f"{KINDS}:predict", body)
    assert status == 400
    assert "has inconsistent batch size" in answer["error"]
    status, answer = server.rest("POST", f"{KINDS}:predict", {"signature_name": "uneven", "inputs": [1.0]})
    assert (status, answer) == (200, {"outputs": {"y": [1.0], "z": [1.0, 1.0]}})


def test_cors_by_flag(server: ServerProcess) -> None:
    status, headers, _ = server.http("GET", HALF)
    assert status == 200
    assert headers["access-control-allow-origin"] == "*"
    status, headers, _ = server.http("OPTIONS", f"{HALF}:predict")
    assert status == 200
    assert headers["access-control-allow-methods"] == "POST, GET"


def test_a_body_may_be_gzipped(server: ServerProcess) -> None:
    body, headers = b'{"instances": [1.0, 2.0, 5.0]}', {"Content-Encoding": "gzip"}
    status, _, answer = server.http("POST", f"{HALF}/versions/1:predict", gzip.compress(body), headers)
    assert status == 200
    assert json.loads(answer) == {"predictions": [2.5, 3.0, 4.5]}
    for broken in (body, gzip.compress(body)[:-9], gzip.compress(body)[:10] + b"\xff" * 20):
        status, _, answer = server.http("POST", f"{HALF}:predict", broken, headers)
        assert status == 400
        assert json.loads(answer)["error"]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_it_listens_on_every_interface(server: ServerProcess, address: str) -> None:
    try:
        client = socket.create_connection((address, server.rest_port), timeout=30)
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise
        pytest.skip(f"this machine has no {address}")
    with client:
        client.sendall(f"GET {HALF} HTTP/1.0\r\n\r\n".encode())
        assert b" 200 OK" in client.recv(100)


UPGRADE = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
WEBSOCKET = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"
)


@pytest.mark.parametrize(
    ("target", "headers"),
    [("", UPGRADE), ("", WEBSOCKET), ("http://localhost", "")],
    ids=["h2c", "ws", "absolute"],
)
def test_odd_requests_that_are_good_ones_are_answered(
    server: ServerProcess, target: str, headers: str
) -> None:
    """An offer of another protocol may be ignored; Java's client makes one with each request."""
    body = b'{"instances": [1.0]}'
    with socket.create_connection(("localhost", server.rest_port), timeout=30) as client:
        head = (
            f"POST {target}{HALF}/versions/1:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        )
        client.sendall(f"{head}{headers}\r\n".encode() + body)
        client.sendall(f"GET {HALF} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b'"predictions": [2.5' in answer


def test_a_client_that_goes_away_and_one_that_claims_a_gigabyte_do_no_harm(server: ServerProcess) -> None:
    for claim in (1000, 2**30):
        with socket.create_connection(("localhost", server.rest_port)) as client:
            head = f"POST {HALF}:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {claim}\r\n\r\n"
            client.sendall(head.encode() + b'{"instances": [1.0')
    assert server.rest("POST", f"{HALF}/versions/1:predict", {"instances": [1.0]})[0] == 200


@pytest.mark.parametrize("limit_ms", [0, -1])
def test_a_time_limit_that_is_not_positive_is_none(start: Any, zoo: Any, limit_ms: int) -> None:
    process = start(
        "--model_name=half_plus_two",
        f"--model_base_path={zoo / 'half_plus_two'}",
        f"--rest_api_timeout_in_ms={limit_ms}",
        has_rest=True,
    ).wait_ready()
    assert process.rest("POST", f"{HALF}:predict", {"instances": [1.0]})[0] == 200


def test_a_call_over_the_time_limit_is_told_so(start: Any, zoo: Any) -> None:
    process = start(
        "--model_name=kinds",
        f"--model_base_path={zoo / 'kinds'}",
        "--rest_api_timeout_in_ms=50",
        has_rest=True,
    ).wait_ready()
    status, answer = process.rest("POST", f"{KINDS}:predict", {"signature_name": "slow", "inputs": [1.0]})
    assert status == 504
    assert answer["error"]
    assert process.stop() == 0
