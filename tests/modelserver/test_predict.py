"""Predict without a graph: signatures that name defaults for inputs, and those made for no method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from serving import protos, tensors
from serving.modelserver.manager import Model
from serving.modelserver.predict import PREDICT_METHOD, PredictOptions, predict
from serving.modelserver.signature import Signature
from serving.modelserver.status import Code, StatusError

CHECKED = PredictOptions()


class Pair:
    """A servable that answers with its inputs `x` and `y`; of these `y` is 7 unless it is given."""

    def __init__(self, method_name: str = PREDICT_METHOD) -> None:
        tensors_of = {
            alias: {"name": f"{alias}:0", "dtype": "DT_FLOAT", "tensor_shape": {"dim": [{"size": -1}]}}
            for alias in ("x", "y")
        }
        message = protos.SignatureDef(inputs=tensors_of, outputs=tensors_of, method_name=method_name)
        message.defaults["y"].CopyFrom(tensors.to_proto(np.array([7.0], np.float32)))
        self.signatures: Mapping[str, Signature] = {"serving_default": Signature.read(message)}

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        return [feeds[name] for name in fetches]

    def close(self) -> None:
        pass


def answer(servable: Pair, options: PredictOptions = CHECKED, /, **inputs: float) -> dict[str, list[float]]:
    request = protos.PredictRequest(model_spec={"name": "m"})
    for alias, value in inputs.items():
        request.inputs[alias].CopyFrom(tensors.to_proto(np.array([value], np.float32)))
    response = predict(Model("m", 1, servable), request, options)
    return {alias: list(proto.float_val) for alias, proto in response.outputs.items()}


def test_an_input_with_a_default_may_be_left_out() -> None:
    assert answer(Pair(), x=1.0) == {"x": [1.0], "y": [7.0]}
    assert answer(Pair(), x=1.0, y=2.0) == {"x": [1.0], "y": [2.0]}


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (
            {"y": 1.0},
            (
                "Signature input alias: x(feed name: x:0) not found in request and no default value "
                "provided. Inputs expected to be in the request {y}, or default input alias set: {y}"
            ),
        ),
        (
            {"x": 1.0, "z": 2.0},
            "Inputs contains invalid name. Used request inputs: x, request input: x,z",
        ),
        (
            {"x": 1.0, "y": 2.0, "z": 3.0},
            (
                "input size does not match signature: 3!=2 len({x,y,z}) != len({x,y}). Sent extra: {z}. "
                "Missing but required: {}."
            ),
        ),
    ],
)
def test_inputs_that_are_missing_or_unknown_are_named(inputs: dict[str, float], text: str) -> None:
    with pytest.raises(StatusError) as refused:
        answer(Pair(), CHECKED, **inputs)
    assert (refused.value.code, refused.value.message) == (Code.INVALID_ARGUMENT, text)


def test_a_value_of_another_shape_is_told_with_the_one_that_is_taken() -> None:
    request = protos.PredictRequest(model_spec={"name": "m"})
    request.inputs["x"].CopyFrom(tensors.to_proto(np.zeros((2, 3), np.float32)))
    with pytest.raises(StatusError) as refused:
        predict(Model("m", 1, Pair()), request, CHECKED)
    assert refused.value.message == "input x has shape [2, 3]; the signature takes [-1] (-1: any size)"


def test_a_signature_made_for_no_method_answers_where_that_is_not_checked() -> None:
    servable = Pair("made/by/hand")
    unchecked = PredictOptions(check_method_names=False)
    assert answer(servable, unchecked, x=1.0) == {"x": [1.0], "y": [7.0]}
    with pytest.raises(StatusError, match="Was: made/by/hand"):
        answer(servable, x=1.0)
