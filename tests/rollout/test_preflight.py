"""What a version must pass before it gets a request: signatures, labels, the self-test, the replicas."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from serving import errors, protos, tensors
from serving.backends.tfserving import TensorFlowServing
from serving.rollout.plan import Plan
from serving.rollout.preflight import incompatible, preflight_verdict, relabelled, self_tested
from serving.rollout.verdict import Outcome, Reason


def signature(**changes: Any) -> dict[str, Any]:
    """An image classifier's `serving_default` with changes: name -> dtype and shape of an input or output."""
    found = protos.SignatureDef()
    sides = {"images": found.inputs, "scores": found.outputs}
    tensors_ = {"images": (np.uint8, (-1, 8, 8, 1)), "scores": (np.float32, (-1, 10))} | changes
    for name, (dtype, shape) in tensors_.items():
        info = sides.get(name, found.outputs)[name]
        info.dtype = tensors.data_type_of(np.dtype(dtype))
        for size in shape:
            info.tensor_shape.dim.add(size=size)
    return {"serving_default": found}


@pytest.mark.parametrize(
    ("candidate", "fault"),
    [
        (signature(), None),
        (signature(extra=(np.float32, (-1, 3))), None),
        ({}, 'it has no signature "serving_default"'),
        (signature(images=(np.float32, (-1, 8, 8, 1))), '"images" has another type'),
        (signature(images=(np.uint8, (-1, 9, 9, 1))), "has shape [-1, 9, 9, 1] instead of [-1, 8, 8, 1]"),
        (signature(scores=(np.float32, (-1, 11))), '"scores" has shape'),
    ],
)
def test_signatures_that_callers_of_stable_can_or_cannot_use(
    candidate: dict[str, Any], fault: str | None
) -> None:
    found = incompatible(signature(), candidate)
    if fault is None:
        assert found == []
    else:
        assert fault in found[0]


def test_labels() -> None:
    assert relabelled(["a", "b"], ["a", "b"]) is None
    assert relabelled(["a", "b"], ["b", "a"]) == "it names the same classes in another order"
    assert relabelled(["a", "b"], ["a", "c"]) == "it does not name the classes b"


@pytest.mark.parametrize(
    ("expected", "actual", "difference"),
    [
        ([[0.1, 0.9], [0.5, 0.5]], [[0.1, 0.9], [0.503, 0.5]], None),
        ([[0.1, 0.9], [0.5, 0.5]], [[0.1, 0.9], [0.51, 0.5]], 0.01),
        ([[400.0, 0.5], [300.0, 0.5]], [[401.0, 0.5], [300.0, 0.503]], None),
        ([[400.0, 0.5], [300.0, 0.5]], [[404.0, 0.5], [300.0, 0.5]], 0.01),
        ([[400.0, 0.5], [300.0, 0.5]], [[400.0, 0.51], [300.0, 0.5]], 0.01),
        ([[0.1, 0.9]], [[np.nan, 0.9]], np.nan),
    ],
)
async def test_a_self_test_is_held_against_the_size_of_each_output(
    expected: list[list[float]], actual: list[list[float]], difference: float | None
) -> None:
    class Api:
        address = "a replica"

        async def predict(self, _request: Any, _timeout_s: float) -> Any:
            response = protos.PredictResponse()
            for name, rows in (("expected", expected), ("actual", actual)):
                response.outputs[name].CopyFrom(tensors.to_proto(np.array(rows, np.float32)))
            return response

    found = await self_tested(cast("TensorFlowServing", Api()), "digits", 2, Plan().preflight)
    told = [each.values["difference"] for each in found if each.code == "preflight.self-test"]
    assert told == pytest.approx([] if difference is None else [difference], abs=1e-5, nan_ok=True)


def test_a_preflight_waits_for_replicas_and_fails_for_one() -> None:
    away = errors.Unavailable("away")
    assert preflight_verdict({}, 1).outcome is Outcome.WAIT
    assert preflight_verdict({"a": away}, 1).outcome is Outcome.WAIT
    assert preflight_verdict({"a": [], "b": away}, 1).outcome is Outcome.PASSED
    assert preflight_verdict({"a": [], "b": away}, 2).outcome is Outcome.WAIT
    assert preflight_verdict({"a": [], "b": [Reason("preflight.slow", "slow")]}, 1).outcome is Outcome.FAIL
