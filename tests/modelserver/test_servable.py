"""A session, and how it is loaded, without a server."""

from __future__ import annotations

import shutil
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from serving.modelserver.loading import Loading
from serving.modelserver.metrics import Metrics
from serving.modelserver.servable import LoadOptions, Session
from serving.modelserver.status import Code, StatusError
from serving.modelserver.warmup import WARMUP_FILE
from serving.modelserver.widths import Cores
from tests.modelserver import models
from tests.modelserver.test_conformance_predict import X, request


def test_a_closed_session_has_freed_its_graph(zoo: Path) -> None:
    session = Session(zoo / "half_plus_two_frozen" / "1", LoadOptions())
    graph = weakref.ref(session._graph)
    session.close()
    assert graph() is None


def test_what_no_array_holds_is_told_as_that(zoo: Path) -> None:
    """A signature made in TensorFlow 1 may name a table, or a variable itself."""
    session = Session(zoo / "half_plus_two" / "1", LoadOptions())
    variable = next(op for op in session._graph.get_operations() if op.type == "VarHandleOp")
    with pytest.raises(StatusError, match=f"Tensor {variable.name}:0 is a resource") as caught:
        session.run({}, [f"{variable.name}:0"])
    assert caught.value.code is Code.INVALID_ARGUMENT
    session.close()


def test_a_load_that_fails_is_counted_as_the_original_counts_it(tmp_path: Path) -> None:
    metrics = Metrics()
    with pytest.raises(StatusError, match="Could not find SavedModel"):
        Loading(LoadOptions(), metrics, 1, True, None).load("m", 1, tmp_path)
    counted = f':tensorflow:cc:saved_model:load_attempt_count{{model_path="{tmp_path}",status="fail"}} 1\n'
    assert counted in metrics.page()


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
