"""Answers made of what a graph gave, where no model of the zoo gives such."""

from __future__ import annotations

import numpy as np

from serving import protos
from serving.modelserver.examples import fill_classifications
from serving.modelserver.signature import Signature


def test_a_label_that_is_no_text_is_told_all_the_same() -> None:
    """A field for text takes nothing else, and the other labels are good."""
    signature = Signature.read(
        protos.SignatureDef(outputs={"classes": {"name": "c:0", "dtype": "DT_STRING"}})
    )
    result = protos.ClassificationResponse().result
    fill_classifications(result, signature, {"c:0": np.array([[b"a\xff", b"\xc3\xa9"]], object)}, 1)
    assert [entry.label for entry in result.classifications[0].classes] == ["a\ufffd", "é"]
