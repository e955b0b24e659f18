"""A traced function with its variables as constants."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from training.folding import fold_normalization


def freeze(traced: tf.types.experimental.ConcreteFunction) -> tf.types.experimental.ConcreteFunction | None:
    """`traced` without variables, its normalization folded; it takes and gives the same, by position.

    None if it has what cannot be folded: a lookup table, or a variable that it writes to, such as the random
    state of a recurrent layer with dropout.
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    if any(node.op.startswith(("Assign", "LookupTable")) for node in graph_nodes(traced)):
        return None
    frozen = convert_variables_to_constants_v2(traced)
    if len(frozen.inputs) > len(traced.inputs) - len(traced.captured_inputs):
        return None
    return fold_normalization(frozen)


def graph_nodes(function: tf.types.experimental.ConcreteFunction) -> list[Any]:
    """The NodeDef of every operation in a traced function, and in the functions that it calls."""
    graph = function.graph.as_graph_def()
    return [*graph.node, *(node for called in graph.library.function for node in called.node_def)]
