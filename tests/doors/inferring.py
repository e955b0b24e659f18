"""Models and answers of a test's own, for the Open Inference Protocol apart from any gateway."""

from __future__ import annotations

from typing import Any

import numpy as np

from serving import protos, tensors
from serving.model_version import ModelVersion
from serving.open_inference import Tensor


def signature(inputs: dict[str, str], outputs: dict[str, str], *, size: int = -1) -> Any:
    """A signature of these tensors, name -> DataType; each of shape [size, 2]."""
    made = protos.SignatureDef()
    for infos, given in ((made.inputs, inputs), (made.outputs, outputs)):
        for name, data_type in given.items():
            infos[name].dtype = tensors.DATA_TYPES.values_by_name[data_type].number
            for each in (size, 2):
                infos[name].tensor_shape.dim.add(size=each)
    return made


FLOATS = {"x": "DT_FLOAT"}
GIVES = {"a": "DT_FLOAT", "b": "DT_INT64"}


def model_of(labels: tuple[str, ...] = (), **signatures: Any) -> ModelVersion:
    return ModelVersion("m", 3, signatures, None, labels)


def floats(name: str = "x") -> Tensor:
    return Tensor(name, "FP32", np.ones((1, 2), np.float32))


def answer_of(**outputs: np.ndarray) -> Any:
    response = protos.PredictResponse()
    for name, array in outputs.items():
        response.outputs[name].CopyFrom(tensors.to_proto(array))
    return response
