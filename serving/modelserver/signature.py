"""What a signature takes and gives, read once when a model is loaded.

A request looks at most of its signature. Messages make new objects at every access, so plain values stand in
for them here, under the messages' own names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a signature.

    Attributes:
        name: of the tensor in the graph.
        dtype: its `tensorflow.DataType`.
        sizes: its shape, -1 for any size; None if the rank is unknown or no shape is given.
    """

    name: str
    dtype: int
    sizes: tuple[int, ...] | None


@dataclass(frozen=True)
class Signature:
    """A `tensorflow.SignatureDef`.

    Attributes:
        message: as the model has it.
        method_name: what it was made for.
        inputs: alias -> tensor.
        outputs: alias -> tensor.
        defaults: alias -> TensorProto, of inputs that a request may leave out.
    """

    message: Any
    method_name: str
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    defaults: Mapping[str, Any]

    @classmethod
    def read(cls, message: Any) -> Signature:
        """From a `SignatureDef` in the classes of `serving.protos`."""
        return cls(
            message,
            message.method_name,
            {alias: _tensor_info(info) for alias, info in message.inputs.items()},
            {alias: _tensor_info(info) for alias, info in message.outputs.items()},
            dict(message.defaults),
        )

    @cached_property
    def fed_twice(self) -> str | None:
        """The tensor that more than one input stands for; the first in order, if there are several."""
        names = sorted(info.name for info in self.inputs.values())
        return next((name for name, following in pairwise(names) if name == following), None)

    @cached_property
    def output_aliases(self) -> list[str]:
        """All outputs, in order."""
        return sorted(self.outputs)

    @cached_property
    def output_names(self) -> list[str]:
        """The tensors of all outputs, each once, in order."""
        return sorted({info.name for info in self.outputs.values()})


def _tensor_info(message: Any) -> TensorInfo:
    shape = message.tensor_shape
    is_known = message.HasField("tensor_shape") and not shape.unknown_rank
    sizes = tuple(dim.size for dim in shape.dim) if is_known else None
    return TensorInfo(message.name, message.dtype, sizes)
