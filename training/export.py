"""A model written as TensorFlow Serving wants it: frozen graph, signatures, warm-up file, proof."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from training import signatures
from training.errors import ProofFailed
from training.freezing import freeze
from training.recipes.base import Interface
from training.served import Served, served

WARMUP_FILE = "tf_serving_warmup_requests"
WARMUP_BATCHES = (1, 8)
SELF_TEST_TOLERANCE = 1e-4
SERVED_TOLERANCE = 1e-5
HALF_TOLERANCE = 0.02  # half precision rounds again wherever the graph's optimizer splits or fuses operations


@dataclass(frozen=True)
class Exported:
    """What is to be written, besides the card.

    `call` takes and gives named tensors as `interface` says; `tracked` are the variables, or what holds them,
    that it reads; `golden` are eight to sixteen examples of its inputs.
    """

    call: signatures.Call
    tracked: Sequence[Any]
    interface: Interface
    golden: Mapping[str, NDArray[Any]]
    archive: keras.Model | None = None
    labels: tuple[str, ...] = ()
    precision: str = "float32"
    freeze: bool = True

    @property
    def tolerance(self) -> float:
        """How much two runs of the model may differ."""
        return SERVED_TOLERANCE if self.precision == "float32" else HALF_TOLERANCE

    def expected(self) -> NDArray[np.float32]:
        """The original model's answers to the golden inputs, side by side: float32 [N, K]."""
        return _side_by_side(self.call({name: tf.constant(array) for name, array in self.golden.items()}))


def of_keras(
    model: keras.Model,
    interface: Interface,
    golden: Mapping[str, NDArray[Any]],
    labels: tuple[str, ...] = (),
    precision: str = "float32",
    freeze: bool = True,
) -> Exported:
    """A Keras model as something to write."""
    return Exported(
        call=lambda inputs: interface.call(model, inputs),
        tracked=[variable.value for variable in model.variables],
        interface=interface,
        golden=golden,
        archive=model,
        labels=labels,
        precision=precision,
        freeze=freeze,
    )


def write(exported: Exported, folder: Path, name: str, card: dict[str, Any]) -> None:
    """Writes SavedModel, warm-up requests, `.keras` archive and card into the empty `folder`."""
    module = tf.Module()
    call = _frozen(exported) if exported.freeze else None
    if call is None:
        call = exported.call
        module.tracked = list(exported.tracked)  # otherwise no session could restore them
    functions = {
        "serving_default": signatures.serving_default(call, exported.interface),
        "describe": signatures.describe(exported.labels, json.dumps(card, separators=(",", ":"))),
        "self_test": signatures.self_test(call, exported.golden, _expected(exported, call)),
    }
    if exported.interface.image_shape:
        functions["serving_bytes"] = signatures.serving_bytes(call, exported.interface)
    # those of swish, say, read variables that a frozen model does not have; serving needs no gradients
    without_gradients = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(folder), functions, without_gradients)
    extra = folder / "assets.extra"
    extra.mkdir(exist_ok=True)
    write_warmup(extra / WARMUP_FILE, name, warmup_inputs(exported))
    if exported.archive is not None:
        exported.archive.save(extra / "model.keras")
    (extra / "card.json").write_text(json.dumps(card, indent=2) + "\n")


def _expected(exported: Exported, call: signatures.Call) -> NDArray[np.float32]:
    """What `self_test` compares with: the original's answers, or in half precision the optimized graph's.

    In half precision these two differ by more than a sound model may differ from itself.
    """
    if exported.precision == "float32":
        return exported.expected()
    golden = {name: tf.constant(array) for name, array in exported.golden.items()}
    return _side_by_side(tf.function(lambda: call(golden))())


def _frozen(exported: Exported) -> signatures.Call | None:
    """The model with its variables folded into constants, after a check that it still answers the same; None
    if it cannot be.
    """
    interface = exported.interface
    names = list(interface.inputs)

    def live(*tensors: Any) -> list[Any]:
        outputs = exported.call(dict(zip(names, tensors, strict=True)))
        return [outputs[name] for name in interface.outputs]

    frozen = freeze(tf.function(live).get_concrete_function(*interface.inputs.values()))
    if frozen is None:
        return None

    def call(inputs: Mapping[str, Any]) -> dict[str, Any]:
        answer = tf.nest.flatten(frozen(*[tf.convert_to_tensor(inputs[name]) for name in names]))
        return dict(zip(interface.outputs, answer, strict=True))

    actual = _side_by_side(call(exported.golden))
    check_close("frozen equals unfrozen", actual, exported.expected(), exported.tolerance)
    return call


def _side_by_side(outputs: Mapping[str, Any]) -> NDArray[np.float32]:
    """`signatures.side_by_side` of eager tensors or arrays."""
    arrays = [np.asarray(outputs[name]) for name in sorted(outputs)]
    return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)


def warmup_inputs(exported: Exported) -> list[tuple[str, dict[str, Any]]]:
    """(signature, inputs) of each warm-up request: every signature, at batch 1 and at a larger one."""
    requests: list[tuple[str, dict[str, Any]]] = []
    for size in WARMUP_BATCHES:
        rows = np.arange(size) % len(next(iter(exported.golden.values())))
        inputs = {name: array[rows] for name, array in exported.golden.items()}
        requests.append(("serving_default", inputs))
        if exported.interface.image_shape:
            files = [tf.io.encode_png(image).numpy() for image in exported.golden["images"][rows]]
            requests.append(("serving_bytes", {"image_bytes": np.array(files, dtype=object)}))
        index = rows.astype(np.int32)
        requests += [("describe", {"index": index}), ("self_test", {"index": index})]
    return requests


def write_warmup(path: Path, model: str, requests: list[tuple[str, dict[str, Any]]]) -> None:
    """A TFRecord file of `PredictionLog{predict_log}`, which TensorFlow Serving replays after a load."""
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    with tf.io.TFRecordWriter(str(path)) as records:
        for signature, inputs in requests:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = model
            request.model_spec.signature_name = signature
            for name, value in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.CopyFrom(request)
            records.write(log.SerializeToString())


def prove(exported: Exported, folder: Path) -> None:
    """Loads what was written as TensorFlow Serving does; raises `ProofFailed` naming the failed check."""
    check = "loads in a session"
    try:
        with served(folder) as loaded:
            replay_warmup(loaded, folder / "assets.extra" / WARMUP_FILE)
            check = "self_test"
            _check_self_test(loaded, exported)
            check = "served equals original"
            actual = _side_by_side(loaded.run("serving_default", exported.golden))
    except (tf.errors.OpError, ValueError, LookupError, OSError) as error:
        raise ProofFailed(check, str(error).partition("\n")[0]) from error
    check_close(check, actual, exported.expected(), exported.tolerance)


def replay_warmup(loaded: Served, path: Path) -> None:
    """Runs every request of a warm-up file; raises `ProofFailed` at the first that fails."""
    from tensorflow_serving.apis import prediction_log_pb2

    for number, record in enumerate(tf.compat.v1.io.tf_record_iterator(str(path))):
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        signature = request.model_spec.signature_name
        try:
            loaded.run(signature, {name: tf.make_ndarray(value) for name, value in request.inputs.items()})
        except (tf.errors.OpError, LookupError) as error:
            raise ProofFailed("warm-up", f"request {number} ({signature}): {error}") from error


def _check_self_test(loaded: Served, exported: Exported) -> None:
    count = len(next(iter(exported.golden.values())))
    outputs = loaded.run("self_test", {"index": np.arange(count, dtype=np.int32)})
    tolerance = max(SELF_TEST_TOLERANCE, exported.tolerance)
    check_close("self_test", outputs["actual"], outputs["expected"], tolerance)


def check_close(check: str, actual: NDArray[Any], expected: NDArray[Any], tolerance: float) -> None:
    """Raises `ProofFailed` where the two differ by more than the tolerance, or are not finite.

    The tolerance is absolute for numbers up to one. Larger ones are rounded more coarsely: in a column of
    them it is relative to the largest.
    """
    if actual.shape != expected.shape:
        raise ProofFailed(check, f"shape {actual.shape} instead of {expected.shape}")
    allowed = tolerance * np.maximum(1.0, np.abs(expected).max(axis=0, initial=0.0))
    apart = np.abs(actual - expected).max(axis=0, initial=0.0)
    if not np.all(apart <= allowed):
        worst = int(np.argmax(apart / allowed))
        raise ProofFailed(check, f"differs by {apart[worst]:.3g}, more than {allowed[worst]:g}")
