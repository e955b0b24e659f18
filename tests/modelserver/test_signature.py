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
