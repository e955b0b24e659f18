"""The Open Inference Protocol, version 2, apart from its transports: tensors, models, answers.

Sources: the protocol's specification (kserve/open-inference-protocol), and Triton's extensions for binary
tensors, classification, model configuration and the repository index (docs/protocol of its server).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serving import protos, tensors
from serving.catalog import Catalog, VersionReport
from serving.errors import InvalidInput, NotFound, SluiceError
from serving.model_version import ModelVersion
from serving.prediction import ModelRef, version_number
from serving.tensorflow_api import DEFAULT_SIGNATURE

PLATFORM = "tensorflow_savedmodel"
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository")

_TYPES = {
    "BOOL": "DT_BOOL",
    "UINT8": "DT_UINT8",
    "UINT16": "DT_UINT16",
    "UINT32": "DT_UINT32",
    "UINT64": "DT_UINT64",
    "INT8": "DT_INT8",
    "INT16": "DT_INT16",
    "INT32": "DT_INT32",
    "INT64": "DT_INT64",
    "FP16": "DT_HALF",
    "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE",
    "BF16": "DT_BFLOAT16",
    "BYTES": "DT_STRING",
}
DATA_TYPES: dict[str, int] = {
    name: tensors.DATA_TYPES.values_by_name[theirs].number for name, theirs in _TYPES.items()
}
NAMES = {number: name for name, number in DATA_TYPES.items()}
# Those that have no field among the typed contents, in gRPC and in JSON.
RAW_ONLY = ("FP16", "BF16")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output. `array` has the datatype's numpy type: for BYTES objects, for BF16 its bits."""

    name: str
    datatype: str
    array: np.ndarray


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request to infer.

    Attributes:
        inputs: the tensors that go in.
        outputs: the outputs that are wanted, each with how many classes to give in place of scores (0: give
            the scores); empty: every output.
        signature_name: which of the model's signatures to run; empty: the one that takes these inputs.
    """

    inputs: Sequence[Tensor]
    outputs: Mapping[str, int] = field(default_factory=dict)
    signature_name: str = ""


def model_ref(name: str, version: str) -> ModelRef:
    """The model and version of a request, where an empty version is the routed one; raises InvalidInput."""
    return ModelRef(name or None, version_number(version) if version else None)


def data_type(datatype: str) -> int:
    """The `tensorflow.DataType` of a datatype's name; raises InvalidInput, naming those that exist."""
    found = DATA_TYPES.get(datatype)
    if found is None:
        raise InvalidInput(f'"{datatype[:100]}" is not a datatype; there are: {", ".join(DATA_TYPES)}')
    return found


def _size_of(shape: Sequence[int], name: str) -> int:
    """How many elements a shape has; raises InvalidInput if numpy would not take it."""
    if len(shape) > tensors.MAX_RANK or min(shape, default=0) < 0 or tensors.is_beyond_memory(shape):
        raise InvalidInput(f'the shape {list(shape)[:100]} of "{name}" is none that a tensor can have')
    return math.prod(shape)


def from_raw(name: str, datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> Tensor:
    """A tensor from its elements' bytes: little-endian, row-major; for BYTES each after its length (uint32).

    Raises:
        InvalidInput: the bytes do not fit the shape.
    """
    dtype = tensors.bits_dtype(data_type(datatype))
    count = _size_of(shape, name)
    if datatype == "BYTES":
        return Tensor(name, datatype, _split_strings(name, raw, count).reshape(shape))
    if len(raw) != count * dtype.itemsize:
        raise InvalidInput(
            f'"{name}" has {len(raw)} bytes; shape {list(shape)} of {datatype} needs {count * dtype.itemsize}'
        )
    if datatype == "BOOL":
        return Tensor(name, datatype, np.not_equal(np.frombuffer(raw, np.uint8), 0).reshape(shape))
    return Tensor(name, datatype, np.frombuffer(raw, dtype.newbyteorder("<")).reshape(shape))


def _split_strings(name: str, raw: bytes | memoryview, count: int) -> np.ndarray:
    found: list[bytes] = []
    position = 0
    while position + 4 <= len(raw) and len(found) < count:
        (length,) = struct.unpack_from("<I", raw, position)
        found.append(bytes(raw[position + 4 : position + 4 + length]))
        position += 4 + length
    if len(found) != count or position != len(raw):
        raise InvalidInput(
            f'"{name}" is not {count} BYTES elements, each a length (4 bytes, little-endian) and the bytes'
        )
    array = np.empty(count, object)
    array[:] = found
    return array


def to_raw(tensor: Tensor) -> bytes:
    """The elements' bytes of a tensor; see `from_raw`."""
    array = tensor.array
    if tensor.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(value)) + value for value in array.ravel().tolist())
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def from_values(name: str, datatype: str, shape: Sequence[int], values: Sequence[Any]) -> Tensor:
    """A tensor from its elements, flat; raises InvalidInput if they do not fit its datatype or shape."""
    dtype = tensors.bits_dtype(data_type(datatype))
    count = _size_of(shape, name)
    if datatype in RAW_ONLY:
        raise InvalidInput(f'"{name}" is {datatype}, which is accepted only as raw bytes')
    if len(values) != count:
        raise InvalidInput(f'"{name}" has {len(values)} elements; shape {list(shape)} takes {count}')
    if datatype == "BYTES":
        array = np.empty(count, object)
        array[:] = [_as_bytes(name, value) for value in values]
        return Tensor(name, datatype, array.reshape(shape))
    wanted = {"b": (bool,), "f": (int, float)}.get(dtype.kind, (int,))
    if not all(type(value) in wanted for value in values):
        raise InvalidInput(f'"{name}" is {datatype}, but not all of its elements are')
    try:
        with np.errstate(over="raise"):
            return Tensor(name, datatype, np.array(values, dtype).reshape(shape))
    except (OverflowError, FloatingPointError):
        raise InvalidInput(f'"{name}" has an element beyond the range of {datatype}') from None


def _as_bytes(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise InvalidInput(f'"{name}" is BYTES, but not all of its elements are strings')


def predict_request(model: ModelVersion, request: InferRequest) -> Any:
    """The PredictRequest of a request to infer.

    Raises:
        InvalidInput: no such signature, or it lacks an input or output; the text names those it has.
    """
    signature_name = _choose_signature(model, request)
    signature = model.signatures[signature_name]
    for each in request.inputs:
        wanted = NAMES.get(signature.inputs[each.name].dtype, "another type")
        if each.datatype != wanted:
            raise InvalidInput(f'"{each.name}" is {each.datatype}; the model takes {wanted}', stage="routing")
    for name in request.outputs:
        if name not in signature.outputs:
            there = ", ".join(sorted(signature.outputs))
            raise InvalidInput(f'there is no output "{name[:100]}"; there are: {there}', stage="routing")
    made = protos.PredictRequest(output_filter=sorted(request.outputs))
    made.model_spec.signature_name = signature_name
    for each in request.inputs:
        tensors.fill_proto(made.inputs[each.name], each.array, data_type=DATA_TYPES[each.datatype])
    return made


def _choose_signature(model: ModelVersion, request: InferRequest) -> str:
    """The signature that is named, or the default one, or the only other one that takes these inputs."""
    given = {each.name for each in request.inputs}
    if len(given) != len(request.inputs):
        raise InvalidInput("an input is given more than once")
    takes = _takes(model)
    asked = request.signature_name
    if asked and asked not in takes:
        there = ", ".join(sorted(takes))
        raise InvalidInput(f'there is no signature "{asked[:100]}"; there are: {there}', stage="routing")
    if not asked and takes.get(DEFAULT_SIGNATURE) != given:
        fitting = [name for name, inputs in takes.items() if inputs == given]
        asked = fitting[0] if len(fitting) == 1 else ""
    chosen = asked or _main_name(takes)
    if takes.get(chosen) != given:
        shown = "; ".join(f"{name}({', '.join(sorted(inputs))})" for name, inputs in sorted(takes.items()))
        said = ", ".join(name[:100] for name in sorted(given)[:10]) or "none"
        raise InvalidInput(f"the inputs are {said}; the model takes: {shown}", stage="routing")
    return chosen


def _takes(model: ModelVersion) -> dict[str, set[str]]:
    """The inputs of each signature that has any; a SavedModel's own (`__saved_model_…`) have none."""
    return {name: set(signature.inputs) for name, signature in model.signatures.items() if signature.inputs}


def _main_name(takes: Mapping[str, set[str]]) -> str:
    """The signature that stands for the model: the default one, or the first by name; empty if none can."""
    return DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in takes else min(takes, default="")


def outputs_of(response: Any, request: InferRequest, model: ModelVersion) -> list[Tensor]:
    """The outputs of a PredictResponse in the order asked for, as classes where that was asked for."""
    names = list(request.outputs) or sorted(response.outputs)
    found = []
    for name in names:
        proto = response.outputs[name]
        datatype = NAMES.get(proto.dtype)
        if datatype is None:
            raise InvalidInput(f'output "{name}" is {tensors.type_name(proto.dtype)}: no datatype here')
        tensor = Tensor(name, datatype, tensors.from_proto(proto, raw=True))
        count = request.outputs.get(name, 0)
        found.append(classified(tensor, count, model.labels) if count else tensor)
    return found


def classified(tensor: Tensor, count: int, labels: Sequence[str]) -> Tensor:
    """The `count` best of a tensor's last dimension, best first, each as `score:index:label` (BYTES).

    The label is left out if `labels` does not have one for each.

    Raises:
        InvalidInput: the tensor is not of numbers, or has no dimension.
    """
    array = tensor.array
    if array.ndim == 0 or array.dtype.kind not in "fiu" or tensor.datatype == "BF16":
        raise InvalidInput(f'output "{tensor.name}" has no scores to find classes by')
    classes = array.shape[-1]
    count = min(count, classes)
    order = np.argsort(-array.astype(np.float64), axis=-1, kind="stable")[..., :count]
    best = np.take_along_axis(array, order, -1)
    named = labels if len(labels) == classes else ()
    texts = np.empty(order.size, object)
    texts[:] = [
        (f"{score:f}:{index}:{named[index]}" if named else f"{score:f}:{index}").encode()
        for score, index in zip(best.ravel().tolist(), order.ravel().tolist(), strict=True)
    ]
    return Tensor(tensor.name, "BYTES", texts.reshape(order.shape))


def _described(infos: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tensors of a signature: name, datatype and shape; -1 for any size. Unknown types are left out."""
    return [
        {
            "name": name,
            "datatype": NAMES[info.dtype],
            "shape": [dim.size for dim in info.tensor_shape.dim],
        }
        for name, info in sorted(infos.items())
        if info.dtype in NAMES
    ]


def _main_signature(model: ModelVersion) -> Any:
    return model.signatures.get(_main_name(_takes(model)), protos.SignatureDef())


def metadata(model: ModelVersion, versions: Sequence[int]) -> dict[str, Any]:
    """A model's metadata: its versions, and the tensors of its default signature."""
    signature = _main_signature(model)
    return {
        "name": model.name,
        "versions": [str(version) for version in sorted(versions)],
        "platform": PLATFORM,
        "inputs": _described(signature.inputs),
        "outputs": _described(signature.outputs),
    }


def config(model: ModelVersion, max_batch: int) -> dict[str, Any]:
    """A model's configuration, as Triton's clients read it.

    It has a batch dimension if the first dimension of every tensor is open; `dims` then leave it out.
    """
    signature = _main_signature(model)
    tensors_in, tensors_out = _described(signature.inputs), _described(signature.outputs)
    batched = all(each["shape"][:1] == [-1] for each in (*tensors_in, *tensors_out))

    def shown(each: Mapping[str, Any]) -> dict[str, Any]:
        name = "STRING" if each["datatype"] == "BYTES" else each["datatype"]
        return {
            "name": each["name"],
            "data_type": f"TYPE_{name}",
            "dims": each["shape"][1:] if batched else each["shape"],
        }

    image_input = model.image.input_name if model.image else None
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "tensorflow",
        "max_batch_size": max_batch if batched else 0,
        "input": [
            {**shown(each), "format": "FORMAT_NHWC" if each["name"] == image_input else "FORMAT_NONE"}
            for each in tensors_in
        ],
        "output": [shown(each) for each in tensors_out],
    }


def is_ready(catalog: Catalog, ref: ModelRef) -> bool:
    """Whether a model, or a version of it, can answer now; raises NotFound if there is no such model."""
    name = catalog.resolve_name(ref.name)
    try:
        catalog.resolve(ModelRef(name, ref.version))
    except SluiceError as error:
        if isinstance(error, NotFound) and not any(
            each.version == ref.version for each in catalog.states(name)
        ):
            raise
        return False
    return True


def index(catalog: Catalog, *, ready_only: bool) -> list[dict[str, str]]:
    """Every version of every model: its name, version, state and, if it failed, why."""
    return [
        {
            "name": model.name,
            "version": str(version.version),
            "state": _state(version),
            "reason": version.error or "",
        }
        for model in catalog.report()
        for version in model.versions
        if version.state == "AVAILABLE" or not ready_only
    ]


def _state(version: VersionReport) -> str:
    if version.state == "AVAILABLE":
        return "READY"
    return "LOADING" if version.state in ("START", "LOADING") else "UNAVAILABLE"
