"""Classify, Regress and MultiInference: `tf.Example`s run through the signatures made for them.

As the original's `classifier.cc`, `regressor.cc` and `multi_inference.cc` do it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving import protos, tensors
from serving.modelserver.manager import Model
from serving.modelserver.predict import CLASSIFY_METHOD, DEFAULT_SIGNATURE, REGRESS_METHOD
from serving.modelserver.servable import data_type_of
from serving.modelserver.signature import Signature
from serving.modelserver.status import Code, StatusError, failed_precondition, invalid_argument

INPUTS = "inputs"  # the alias of the examples, in both kinds of signature
CLASSES, SCORES = "classes", "scores"
OUTPUTS = "outputs"


def classify(model: Model, request: Any, *, check_method: bool) -> Any:
    """The `ClassificationResponse` to `request`; raises StatusError in the original's words."""
    name, signature = _signature(model, request.model_spec)
    check_classification(signature, check_method=check_method)
    examples = serialized_examples(request.input)
    values = _run(model, signature, examples, _classification_outputs(signature))
    response = protos.ClassificationResponse()
    _fill_spec(response.model_spec, model, name)
    fill_classifications(response.result, signature, values, len(examples))
    return response


def regress(model: Model, request: Any, *, check_method: bool) -> Any:
    """The `RegressionResponse` to `request`; raises StatusError in the original's words."""
    name, signature = _signature(model, request.model_spec)
    check_regression(signature, check_method=check_method)
    examples = serialized_examples(request.input)
    values = _run(model, signature, examples, [OUTPUTS])
    response = protos.RegressionResponse()
    _fill_spec(response.model_spec, model, name)
    fill_regressions(response.result, signature, values, len(examples))
    return response


def multi_inference(model: Model, request: Any, *, check_method: bool) -> Any:
    """The `MultiInferenceResponse` to `request`: one run of the graph for all its tasks."""
    signatures = _check_tasks(model, request.tasks, check_method=check_method)
    examples = serialized_examples(request.input)
    fetches = sorted(
        {
            signature.outputs[alias].name
            for task, signature in zip(request.tasks, signatures.values(), strict=True)
            for alias in _outputs_of(task.method_name, signature)
        }
    )
    input_name = next(iter(signatures.values())).inputs[INPUTS].name
    arrays = model.servable.run({input_name: _as_tensor(examples)}, fetches)
    values = dict(zip(fetches, arrays, strict=True))
    response = protos.MultiInferenceResponse()
    for task, (name, signature) in zip(request.tasks, signatures.items(), strict=True):
        result = response.results.add()
        _fill_spec(result.model_spec, model, name)
        if task.method_name == CLASSIFY_METHOD:
            fill_classifications(result.classification_result, signature, values, len(examples))
        else:
            fill_regressions(result.regression_result, signature, values, len(examples))
    return response


def _signature(model: Model, spec: Any) -> tuple[str, Signature]:
    name = spec.signature_name or DEFAULT_SIGNATURE
    signature = model.servable.signatures.get(name)
    if signature is None:
        raise invalid_argument(f"No signature was found with the name: {name}")
    return name, signature


def _check_tasks(model: Model, tasks: Sequence[Any], *, check_method: bool) -> dict[str, Signature]:
    """Signature name -> signature of each task, in order."""
    if not tasks:  # of a warm-up file; the tasks of requests say which model they are for
        raise invalid_argument("Inference request cannot have empty list of tasks.")
    signatures: dict[str, Signature] = {}
    for task in tasks:
        if not task.model_spec.name:
            raise invalid_argument("Found ModelSpec with an empty model name.")
        if task.model_spec.name != model.name:
            raise invalid_argument(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if name in signatures:
            raise invalid_argument(f"Duplicate evaluation of signature: {name}")
        signature = model.servable.signatures.get(name)
        if signature is None:
            raise invalid_argument(f"Requested signature not found in model graph: {name}")
        if task.method_name == CLASSIFY_METHOD:
            check_classification(signature, check_method=check_method)
        elif task.method_name == REGRESS_METHOD:
            check_regression(signature, check_method=check_method)
        else:
            raise StatusError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        signatures[name] = signature
    if len({signature.inputs[INPUTS].name for signature in signatures.values()}) > 1:
        raise invalid_argument("Input tensor must be the same for all Signatures.")
    return signatures


def check_classification(signature: Signature, *, check_method: bool) -> None:
    """Refuse a signature that Classify cannot use."""
    if check_method and signature.method_name != CLASSIFY_METHOD:
        raise invalid_argument(
            f"Expected classification signature method_name to be {CLASSIFY_METHOD}. "
            f"Was: {signature.method_name}"
        )
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid_argument(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if INPUTS not in signature.inputs:
        raise failed_precondition(f"No classification inputs found in SignatureDef: {signature.message}")
    if not _classification_outputs(signature):
        raise failed_precondition(
            "Expected classification signature outputs to contain at least one of "
            f'"{CLASSES}" or "{SCORES}". Signature was: {signature.message}'
        )


def check_regression(signature: Signature, *, check_method: bool) -> None:
    """Refuse a signature that Regress cannot use."""
    if check_method and signature.method_name != REGRESS_METHOD:
        raise invalid_argument(
            f"Expected regression signature method_name to be {REGRESS_METHOD}. Was: {signature.method_name}"
        )
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid_argument("Expected one output Tensor.")
    if INPUTS not in signature.inputs:
        raise failed_precondition(f"No regression inputs found in SignatureDef: {signature.message}")
    if OUTPUTS not in signature.outputs:
        raise failed_precondition(f"No regression outputs found in SignatureDef: {signature.message}")


def _classification_outputs(signature: Signature) -> list[str]:
    return [alias for alias in (CLASSES, SCORES) if alias in signature.outputs]


def _outputs_of(method_name: str, signature: Signature) -> list[str]:
    return _classification_outputs(signature) if method_name == CLASSIFY_METHOD else [OUTPUTS]


def serialized_examples(given: Any) -> list[bytes]:
    """The examples of an `Input`, each with the context's features merged in; raises StatusError if none."""
    kind = given.WhichOneof("kind")
    if kind == "example_list":
        found = [example.SerializeToString() for example in given.example_list.examples]
    elif kind == "example_list_with_context":
        # Serialised messages that follow one another are merged when parsed; the later value wins.
        context = given.example_list_with_context.context.SerializeToString()
        examples = given.example_list_with_context.examples
        found = [context + example.SerializeToString() for example in examples]
    else:
        found = []
    if not found:
        raise invalid_argument("Input is empty.")
    return found


def _as_tensor(examples: Sequence[bytes]) -> np.ndarray:
    array = np.empty(len(examples), object)
    array[:] = examples
    return array


def _run(
    model: Model, signature: Signature, examples: Sequence[bytes], aliases: Sequence[str]
) -> dict[str, np.ndarray]:
    """Tensor name -> value of the outputs named."""
    fetches = sorted({signature.outputs[alias].name for alias in aliases})
    arrays = model.servable.run({signature.inputs[INPUTS].name: _as_tensor(examples)}, fetches)
    return dict(zip(fetches, arrays, strict=True))


def _fill_spec(spec: Any, model: Model, signature_name: str) -> None:
    spec.name = model.name
    spec.signature_name = signature_name
    spec.version.value = model.version


def fill_classifications(
    result: Any, signature: Signature, values: Mapping[str, np.ndarray], count: int
) -> None:
    """Fill a `ClassificationResult` for `count` examples from tensor values; raises StatusError."""
    found: dict[str, np.ndarray] = {}
    for alias, kind in ((CLASSES, "DT_STRING"), (SCORES, "DT_FLOAT")):
        if alias in signature.outputs:
            found[alias] = values[signature.outputs[alias].name]
            _check_matrix(alias, found[alias], kind, count)
    sizes = [array.shape[1] for array in found.values()]
    if len(set(sizes)) > 1:
        raise invalid_argument(
            "Tensors class and score should match in dim_size(1). Got " + " vs. ".join(map(str, sizes))
        )
    classes = found[CLASSES].tolist() if CLASSES in found else None
    scores = found[SCORES].tolist() if SCORES in found else None
    for row in range(count):
        classifications = result.classifications.add()
        for column in range(sizes[0]):
            entry = classifications.classes.add()
            if classes is not None:
                entry.label = classes[row][column].decode("utf-8", errors="replace")
            if scores is not None:
                entry.score = scores[row][column]


def _check_matrix(alias: str, array: np.ndarray, kind: str, count: int) -> None:
    if array.ndim != 2:
        raise invalid_argument(
            f"Expected Tensor shape: [batch_size num_classes] but got {_shape_text(array)}"
        )
    actual = _type_name(array)
    if actual != kind:
        raise invalid_argument(f"Expected {alias} Tensor of {kind}. Got: {actual}")
    if array.shape[0] != count:
        raise invalid_argument(f"Expected {alias} output batch size of {count}. Got: {array.shape[0]}")


def fill_regressions(result: Any, signature: Signature, values: Mapping[str, np.ndarray], count: int) -> None:
    """Fill a `RegressionResult` for `count` examples from tensor values; raises StatusError."""
    array = values[signature.outputs[OUTPUTS].name]
    if not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        raise invalid_argument(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            + _shape_text(array)
        )
    if array.shape[0] != count:
        raise invalid_argument(
            f"Input batch size did not match output batch size: {count} vs. {array.shape[0]}"
        )
    actual = _type_name(array)
    if actual != "DT_FLOAT":
        raise invalid_argument(f"Expected output Tensor of DT_FLOAT.  Got: {actual}")
    for value in array.ravel().tolist():
        result.regressions.add(value=value)


def _type_name(array: np.ndarray) -> str:
    return tensors.type_name(data_type_of(array.dtype))


def _shape_text(array: np.ndarray) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"
