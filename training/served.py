"""A SavedModel run the way TensorFlow Serving runs it.

A fresh session, the `serve` tag, the restore and init ops, feeds and fetches by SignatureDef. What
`tf.saved_model.load` forgives (variables that no object tracks), this does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray


class Served:
    """A loaded SavedModel. `signatures` maps each signature's name to its SignatureDef."""

    def __init__(self, session: Any, signatures: Mapping[str, Any]) -> None:
        self._session = session
        self.signatures = signatures

    def run(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """The outputs of one call, by their names in the SignatureDef."""
        definition = self.signatures[signature]
        feeds = {definition.inputs[name].name: value for name, value in inputs.items()}
        fetches = {name: info.name for name, info in definition.outputs.items()}
        outputs: dict[str, NDArray[Any]] = self._session.run(fetches, feeds)
        return outputs

    def run_in_batches(
        self, signature: str, inputs: Mapping[str, NDArray[Any]], batch_size: int = 256
    ) -> dict[str, NDArray[Any]]:
        """The same for many examples, a batch at a time."""
        count = len(next(iter(inputs.values())))
        parts = [
            self.run(signature, {name: array[start : start + batch_size] for name, array in inputs.items()})
            for start in range(0, count, batch_size)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    """Loads the SavedModel in `folder` for the duration of the block."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta_graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder))
        yield Served(session, dict(meta_graph.signature_def))
