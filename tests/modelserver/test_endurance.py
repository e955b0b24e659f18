"""Hostile and long use: mutated messages and bodies, and reload after reload, with memory level.

Short by default; SLUICE_FUZZ_EXAMPLES (20,000 for a full run) and SLUICE_RELOAD_CYCLES (200) make it long.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from serving import protos, tensors
from tests.modelserver.conftest import StartServer, config_of
from tests.modelserver.process import ServerProcess
from tests.modelserver.test_conformance_models import FAST, specific
from tests.modelserver.test_conformance_predict import Code, request

EXAMPLES = int(os.environ.get("SLUICE_FUZZ_EXAMPLES", "600"))
CYCLES = int(os.environ.get("SLUICE_RELOAD_CYCLES", "12"))
CLIENTS_FAULT = {Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.UNIMPLEMENTED}
MAX_CALL_S = 20.0


def rss_bytes(server: ServerProcess) -> int:
    return int(psutil.Process(server.process.pid).memory_info().rss)


def mutated(seed: bytes, dice: random.Random) -> bytes:
    """`seed` with one to four small wounds."""
    data = bytearray(seed)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) + 1)
        kind = dice.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << dice.randrange(8)
        elif kind == 1:
            data[at:at] = dice.randbytes(dice.randint(1, 8))
        elif kind == 2:
            del data[at : at + dice.randint(1, 8)]
        elif kind == 3:
            data[at:at] = data[at : at + dice.randint(1, 40)]
        elif kind == 4 and data:
            data[at % len(data)] = dice.choice([0, 0x7F, 0x80, 0xFF])
        else:
            data = data[: max(at, 1)]
    return bytes(data)


def predict_seeds() -> list[bytes]:
    typed = protos.PredictRequest(model_spec={"name": "kinds", "signature_name": "id_int32"})
    typed.inputs["x"].CopyFrom(tensors.to_proto(np.arange(6, dtype=np.int32).reshape(2, 3), as_content=False))
    messages = [
        request("kinds", "matrix", x=np.ones((2, 3), np.float32)),
        request("kinds", "two", a=np.ones((2, 2), np.float32), b=np.ones(2, np.int32)),
        request("kinds", "strings", s=np.array([b"abc", b""], object)),
        request("kinds", "id_string", x=np.array([[b"abc"], [b"\xff" * 9]], object)),
        request("kinds", "id_complex64", x=np.ones(3, np.complex64)),
        typed,
    ]
    messages[0].output_filter.append("y")
    return [message.SerializeToString() for message in messages]


def json_seeds() -> list[bytes]:
    bodies: list[dict[str, Any]] = [
        {"signature_name": "matrix", "instances": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]},
        {"signature_name": "two", "inputs": {"a": [[1, 2]], "b": [3]}},
        {"signature_name": "two", "instances": [{"a": [1, 2], "b": 3}, {"a": [1e3, -2.5], "b": 0}]},
        {"signature_name": "strings", "instances": [{"b64": "aGVsbG8="}, "naïve\n"]},
        {"signature_name": "id_bool", "inputs": [[True, False], [False, True]]},
    ]
    return [json.dumps(body).encode() for body in bodies]


def test_mutated_predict_messages_are_the_clients_fault(server: ServerProcess) -> None:
    dice = random.Random(20261124)
    seeds = predict_seeds()
    call: Any = server.channel.unary_unary(f"/{protos.PREDICTION_SERVICE}/Predict")
    codes: Counter[Code] = Counter()
    level = 0
    for number in range(EXAMPLES):
        data = mutated(dice.choice(seeds), dice)
        try:
            call(data, timeout=MAX_CALL_S)
            code, text = Code.OK, ""
        except grpc.RpcError as error:
            code, text = error.code(), error.details() or ""
        assert code in CLIENTS_FAULT, (number, data, code, text)
        codes[code] += 1
        if number == EXAMPLES // 3:
            level = rss_bytes(server)
    assert codes[Code.OK]
    assert codes[Code.INVALID_ARGUMENT]
    assert rss_bytes(server) < level * 1.1 + 50e6
    assert server.predict(request("kinds", "id_bool", x=np.ones(1, bool))).outputs["y"].bool_val == [True]


def test_mutated_json_bodies_are_the_clients_fault(server: ServerProcess) -> None:
    dice = random.Random(42)
    seeds = json_seeds()
    statuses: Counter[int] = Counter()
    level = 0
    for number in range(EXAMPLES):
        body = mutated(dice.choice(seeds), dice)
        status, _, answer = server.http("POST", "/v1/models/kinds:predict", body)
        assert status in (200, 400, 501), (number, body, status, answer)
        if status != 200:
            assert json.loads(answer)["error"]
        statuses[status] += 1
        if number == EXAMPLES // 3:
            level = rss_bytes(server)
    assert statuses[200]
    assert statuses[400]
    assert rss_bytes(server) < level * 1.1 + 50e6


@pytest.mark.parametrize("shape", [[2**28], [2**14, 2**14], [2**62, 4]])
def test_a_small_message_that_claims_a_gigabyte_allocates_nothing(
    server: ServerProcess, shape: list[int]
) -> None:
    before = rss_bytes(server)
    message = protos.PredictRequest(model_spec={"name": "kinds", "signature_name": "id_float32"})
    message.inputs["x"].dtype = tensors.data_type_of(np.dtype(np.float32))
    message.inputs["x"].float_val.append(1.0)
    for size in shape:
        message.inputs["x"].tensor_shape.dim.add(size=size)
    with pytest.raises(grpc.RpcError) as caught:
        server.predict(message)
    assert caught.value.code() is Code.INVALID_ARGUMENT
    assert rss_bytes(server) < before + 100e6


def test_a_client_that_goes_away_in_the_middle_does_no_harm(server: ServerProcess) -> None:
    for _ in range(3):
        with pytest.raises(grpc.RpcError) as caught:
            server.predict(request("kinds", "slow", x=np.ones(1, np.float32)), timeout_s=0.02)
        assert caught.value.code() is Code.DEADLINE_EXCEEDED
    assert server.predict(request("kinds", "id_bool", x=np.ones(1, bool))).model_spec.version.value == 1


@pytest.mark.parametrize("model", ["half_plus_two", "half_plus_two_frozen"])
def test_reload_after_reload_keeps_memory_level(start: StartServer, zoo: Path, model: str) -> None:
    """Two versions take turns; growth after the first tenth of the cycles stays under 5 %."""
    base = str(zoo / model)
    server = start("--model_name=m", f"--model_base_path={base}", *FAST).wait_ready()
    level = 0
    for cycle in range(CYCLES):
        came, went = 1 + cycle % 2, 2 - cycle % 2
        server.reload(config_of({"name": "m", "base_path": base, "model_version_policy": specific(came)}))
        server.wait_states("m", {came: "AVAILABLE", went: "END"} if cycle else {came: "AVAILABLE", 3: "END"})
        answer = server.predict(request("m", x=np.zeros(1, np.float32)))
        assert list(answer.outputs["y"].float_val) == [1.0 + came]
        if cycle == CYCLES // 10:
            level = rss_bytes(server)
    assert rss_bytes(server) < level * 1.05
