"""What a signature takes, as plain values."""

from __future__ import annotations

from typing import Any

import pytest

from serving import protos
from serving.modelserver.signature import Signature


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ({}, None),  # nothing is said of it: any shape
        ({"tensor_shape": {"unknown_rank": True}}, None),
        ({"tensor_shape": {}}, ()),
        ({"tensor_shape": {"dim": [{"size": -1}, {"size": 3}]}}, (-1, 3)),
    ],
)
def test_the_sizes_of_an_input(shape: dict[str, Any], sizes: tuple[int, ...] | None) -> None:
    info = {"name": "x:0", "dtype": "DT_FLOAT"} | shape
    assert Signature.read(protos.SignatureDef(inputs={"x": info})).inputs["x"].sizes == sizes


@pytest.mark.parametrize(
    ("tensors", "fed_twice"),
    [
        ({"a": "x:0", "b": "y:0"}, None),
        ({"a": "y:0", "b": "x:0", "c": "y:0"}, "y:0"),
        ({"a": "y:0", "b": "x:0", "c": "y:0", "d": "x:0"}, "x:0"),  # the first in order of names
        ({}, None),
    ],
)
def test_the_tensor_that_two_inputs_are(tensors: dict[str, str], fed_twice: str | None) -> None:
    inputs = {alias: {"name": name} for alias, name in tensors.items()}
    assert Signature.read(protos.SignatureDef(inputs=inputs)).fed_twice == fed_twice
