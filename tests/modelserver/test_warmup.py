"""Warm-up requests: which are replayed, how often, what fails a load, and what is timed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import protos
from serving.modelserver import warmup
from serving.modelserver.loading import Loading
from serving.modelserver.manager import Model
from serving.modelserver.metrics import Metrics
from serving.modelserver.predict import CLASSIFY_METHOD, REGRESS_METHOD
from serving.modelserver.servable import LoadOptions, Session
from serving.modelserver.signature import Signature
from serving.modelserver.status import Code, StatusError
from serving.modelserver.warmup import WARMUP_FILE, DamagedFile, warm_up
from serving.modelserver.widths import Cores
from tests.modelserver import models
from tests.modelserver.test_conformance_predict import X, request

EXAMPLE = {"features": {"feature": {"x": {"float_list": {"value": [2.0]}}}}}
INPUT = {"example_list": {"examples": [EXAMPLE]}}


def spec(signature: str) -> dict[str, str]:
    return {"name": "another_name", "signature_name": signature}


def multi_inference(*signatures: tuple[str, str]) -> dict[str, Any]:
    tasks = [{"model_spec": spec(signature), "method_name": method} for signature, method in signatures]
    return {"multi_inference_log": {"request": {"input": INPUT, "tasks": tasks}}}


class Counted:
    """A session that counts its runs."""

    def __init__(self, session: Session) -> None:
        self._session, self.runs = session, 0

    @property
    def signatures(self) -> Mapping[str, Signature]:
        return self._session.signatures

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        self.runs += 1
        return self._session.run(feeds, fetches)

    def close(self) -> None:
        self._session.close()


@pytest.fixture
def counted(zoo: Path) -> Iterator[Counted]:
    found = Counted(Session(zoo / "half_plus_two_tf1" / "123", LoadOptions()))
    yield found
    found.close()


def file_of(folder: Path, *logs: Mapping[str, Any] | bytes) -> Path:
    """A warm-up file of these logs; bytes are a record as it is."""
    models.warmup_records(
        folder,
        [log if isinstance(log, bytes) else protos.PredictionLog(**log).SerializeToString() for log in logs],
    )
    return folder / WARMUP_FILE


CLASSIFY = {"classify_log": {"request": {"model_spec": spec("classify_x_to_y"), "input": INPUT}}}
REGRESS = {"regress_log": {"request": {"model_spec": spec("regress_x_to_y"), "input": INPUT}}}


@pytest.mark.parametrize(
    ("logs", "runs"),
    [
        ([{"predict_log": {"request": request("another_name", x=X[:, np.newaxis])}}], 2),
        ([CLASSIFY, REGRESS], 4),
        ([multi_inference(("classify_x_to_y", CLASSIFY_METHOD), ("regress_x_to_y", REGRESS_METHOD))], 2),
        ([b"", {"predict_streamed_log": {"request": [request("m", z=X)]}}], 0),
        ([], 0),
    ],
)
def test_each_request_is_run_so_often_whatever_model_it_names(
    logs: list[Any], runs: int, counted: Counted, tmp_path: Path
) -> None:
    assert warm_up(Model("m", 1, counted), file_of(tmp_path, *logs), 2) == len(logs)
    assert counted.runs == runs


@pytest.mark.parametrize(
    ("logs", "code", "text"),
    [
        (
            [REGRESS, {"session_run_log": {}}],
            Code.UNIMPLEMENTED,
            "Unsupported log_type for warmup: session_run_log",
        ),
        ([REGRESS, b"\xff"], Code.INVALID_ARGUMENT, "Failed to parse warmup record: b'\\xff' from {path}"),
        (
            [REGRESS, multi_inference()],
            Code.INVALID_ARGUMENT,
            "Inference request cannot have empty list of tasks.",
        ),
        (
            [REGRESS] * 4,
            Code.INVALID_ARGUMENT,
            "Number of warmup records exceeds the maximum (3) at {path}",
        ),
    ],
)
def test_what_fails_a_load(
    logs: list[Any], code: Code, text: str, counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "MAX_RECORDS", 3)
    path = file_of(tmp_path, *logs)
    with pytest.raises(StatusError) as caught:
        warm_up(Model("m", 1, counted), path, 1)
    assert (caught.value.code, caught.value.message) == (code, text.format(path=path))
    assert counted.runs == min(len(logs), 3) - (len(logs) == 2)


def test_as_many_records_as_may_be(counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "MAX_RECORDS", 3)
    assert warm_up(Model("m", 1, counted), file_of(tmp_path, REGRESS, b"", REGRESS), 1) == 3


def test_a_file_is_read_up_to_where_it_is_damaged(counted: Counted, tmp_path: Path) -> None:
    path = file_of(tmp_path, REGRESS, REGRESS)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(
        DamagedFile, match=r"Please verify your warmup data is in TFRecord format\."
    ) as caught:
        warm_up(Model("m", 1, counted), path, 1)
    assert caught.value.code is Code.DATA_LOSS
    assert counted.runs == 1


@pytest.mark.parametrize("check_method", [True, False])
@pytest.mark.parametrize(
    "log",
    [
        {"regress_log": {"request": {"model_spec": spec("classify_scores"), "input": INPUT}}},
        multi_inference(("classify_scores", REGRESS_METHOD)),
    ],
)
def test_names_of_methods_are_checked_where_those_of_requests_are(
    log: dict[str, Any], check_method: bool, counted: Counted, tmp_path: Path
) -> None:
    with pytest.raises(StatusError) as caught:
        warm_up(Model("m", 1, counted), file_of(tmp_path, log), 1, check_method=check_method)
    assert ("Expected regression signature method_name" in caught.value.message) is check_method


def copied(model: Path, folder: Path) -> Path:
    """A copy of a model's version, whose warm-up file is the test's own."""
    shutil.copytree(model, folder)
    (folder / "assets.extra").mkdir()
    return folder


@pytest.mark.parametrize(
    ("inputs", "counted"),
    [
        pytest.param(None, "", id="there is no file"),
        pytest.param({"x": X}, "OK", id="all are answered"),
        pytest.param({"z": X}, "", id="one is refused"),
        pytest.param(b"no TFRecord" * 9, "DATA_LOSS", id="it is no such file"),
    ],
)
def test_a_warm_up_is_timed_where_its_file_was_read_to_the_end_or_to_damage(
    inputs: dict[str, Any] | bytes | None, counted: str, zoo: Path, tmp_path: Path
) -> None:
    folder, metrics = copied(zoo / "half_plus_two_frozen" / "1", tmp_path / "1"), Metrics()
    if isinstance(inputs, bytes):
        (folder / WARMUP_FILE).write_bytes(inputs)
    elif inputs is not None:
        models.warmup(folder, [request("m", **inputs)])
    loading = Loading(LoadOptions(), metrics, 1, True, None, Cores(2))
    with suppress(StatusError):
        loading.load("m", 1, folder).close()
    latency = f':tensorflow:serving:model_warmup_latency_count{{model_path="{folder}",status="'
    assert [line for line in metrics.page().splitlines() if line.startswith(latency)] == (
        [f'{latency}{counted}"}} 1'] if counted else []
    )
