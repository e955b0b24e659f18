"""What flags say of how SavedModels are loaded and warmed up; true of the original, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serving import protos, tensors
from tests.modelserver.conftest import StartServer
from tests.modelserver.process import ServerProcess
from tests.modelserver.test_conformance_models import FAST
from tests.modelserver.test_conformance_predict import request

X = np.array([1.0, 5.0], np.float32)


def answer(server: ServerProcess) -> list[float]:
    values: list[float] = tensors.from_proto(server.predict(request("m", x=X)).outputs["y"]).tolist()
    return values


def test_the_graph_with_just_these_tags_is_loaded(start: StartServer, tmp_path: Path) -> None:
    from tests.modelserver import models

    base = tmp_path / "m"
    models.tagged(base / "1", {("serve",): 1.0, ("serve", "gpu"): 2.0})
    flags = ("--model_name=m", f"--model_base_path={base}", *FAST)
    server = start(*flags, "--saved_model_tags=gpu,serve").wait_ready()
    assert answer(server) == [3.0, 7.0]
    models.tagged(tmp_path / "next", {("serve",): 1.0})
    (tmp_path / "next").rename(base / "2")
    server.wait_states("m", {2: "END", 1: "AVAILABLE"})
    message = protos.GetModelStatusRequest(model_spec={"name": "m", "version": {"value": 2}})
    (found,) = server.call(protos.MODEL_SERVICE, "GetModelStatus", message).model_version_status
    assert "Could not find meta graph def matching supplied tags: { " in found.status.error_message


@pytest.mark.parametrize(
    ("flag", "runs"),
    [
        ("--enable_model_warmup=true", 2),
        ("--num_request_iterations_for_warmup=3", 6),
        ("--enable_model_warmup=false", 0),
    ],
)
def test_how_often_warm_up_requests_are_run(start: StartServer, tmp_path: Path, flag: str, runs: int) -> None:
    from tests.modelserver import models

    models.counter(tmp_path / "m" / "1")
    models.warmup(tmp_path / "m" / "1", [request("m", x=X)] * 2)
    server = start("--model_name=m", f"--model_base_path={tmp_path / 'm'}", flag, *FAST).wait_ready()
    assert answer(server) == [runs + 1, runs + 1]
    assert answer(server) == [runs + 2, runs + 2]


def test_answers_with_their_bytes_where_that_is_asked_for(start: StartServer, zoo: Path) -> None:
    server = start(
        "--model_name=m", f"--model_base_path={zoo / 'half_plus_two'}",
        "--enable_serialization_as_tensor_content=true",
    ).wait_ready()  # fmt: skip
    output = server.predict(request("m", x=X)).outputs["y"]
    assert output.tensor_content == np.array([4.5, 6.5], np.float32).tobytes()
    assert not output.float_val
