"""A session, and how it is loaded, without a server."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest

from serving.modelserver import servable
from serving.modelserver.loading import Loading
from serving.modelserver.metrics import Metrics
from serving.modelserver.servable import LoadOptions, Session
from serving.modelserver.status import Code, StatusError


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


def test_what_runs_one_choice_of_outputs_is_kept_for_so_many_of_them(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers choose the outputs; those that were asked for longest ago are forgotten."""
    monkeypatch.setattr(servable, "MAX_CALLABLES", 2)
    session = Session(zoo / "kinds" / "1", LoadOptions())
    two = session.signatures["two"]
    feeds = {two.inputs["a"].name: np.ones([1, 2], np.float32), two.inputs["b"].name: np.ones([1], np.int32)}
    total, doubled = two.outputs["total"].name, two.outputs["doubled"].name
    for fetches in ([total], [doubled], [total], [total, doubled]):
        session.run(feeds, fetches)
    assert [fetched for _, fetched in session._callables] == [(total,), (total, doubled)]
    assert [array.tolist() for array in session.run(feeds, [doubled, total])] == [[2], [3.0]]
    session.close()
