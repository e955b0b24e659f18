"""Small SavedModels for the tests, made as users make them: TF2-style and TF1-style."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from serving import protos
from tests.modelserver.process import DTYPES

tf1 = tf.compat.v1
LARGE_BYTES = 64 * 2**20


def spec(shape: Sequence[int | None] | None, dtype: Any, name: str) -> Any:
    return tf.TensorSpec(shape, dtype, name=name)


def function(body: Callable[..., Any], *inputs: Any) -> Any:
    return tf.function(body, input_signature=list(inputs))


def half_plus_two(folder: Path, addend: float = 2.0) -> None:
    """The guide's model: y = x / 2 + 2."""

    module = tf.Module()
    module.half, module.addend = tf.Variable(0.5), tf.Variable(addend)
    module.serve = function(lambda x: {"y": x * module.half + module.addend}, spec([None], tf.float32, "x"))
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})


def frozen_half_plus_two(folder: Path, addend: float = 2.0) -> None:
    """The same with constants for its variables, as exported models have: nothing is kept between runs."""
    module = tf.Module()
    module.serve = function(lambda x: {"y": x * 0.5 + addend}, spec([None], tf.float32, "x"))
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})


def large(folder: Path) -> None:
    """A sum over constants of 1 MiB that fill `LARGE_BYTES`, as the layers of a network do."""
    constants = [np.full([2**18], index, np.float32) for index in range(LARGE_BYTES // 2**20)]
    module = tf.Module()
    module.serve = function(
        lambda x: {"y": tf.add_n([tf.reduce_sum(x * constant) for constant in constants])},
        spec([], tf.float32, "x"),
    )
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})


def half_plus_two_tf1(folder: Path) -> None:
    """The original's own test model: predict, regress and classify signatures over `tf.Example`s."""
    with tf.Graph().as_default(), tf1.Session() as session:
        half, two = tf1.Variable(0.5, name="a"), tf1.Variable(2.0, name="b")
        serialized = tf1.placeholder(tf.string, [None], name="tf_example")
        features = tf.io.parse_example(serialized, {"x": tf.io.FixedLenFeature([1], tf.float32)})
        x = tf.identity(features["x"], name="x")
        y = tf.identity(x * half + two, name="y")
        label = tf.strings.join([tf.strings.as_string(tf.cast(x, tf.int32)), "!"])
        info = tf1.saved_model.utils.build_tensor_info
        make = tf1.saved_model.signature_def_utils.build_signature_def
        methods = "tensorflow/serving/"
        examples = {"inputs": info(serialized)}
        ops = info(x), info(y)
        for op in ops:
            op.name = op.name.removesuffix(":0")
        signatures = {
            "serving_default": make({"x": info(x)}, {"y": info(y)}, methods + "predict"),
            "named_by_ops": make({"x": ops[0]}, {"y": ops[1]}, methods + "predict"),
            "two_names": make({"x": info(x), "also_x": info(x)}, {"y": info(y)}, methods + "predict"),
            "regress_x_to_y": make(examples, {"outputs": info(y)}, methods + "regress"),
            "classify_x_to_y": make(
                examples, {"scores": info(y), "classes": info(label)}, methods + "classify"
            ),
            "classify_scores": make(examples, {"scores": info(y)}, methods + "classify"),
            "regress_wide": make(examples, {"outputs": info(tf.concat([y, y], 1))}, methods + "regress"),
            "regress_bfloat16": make(
                examples, {"outputs": info(tf.cast(y, tf.bfloat16))}, methods + "regress"
            ),
        }
        session.run(tf1.global_variables_initializer())
        builder = tf1.saved_model.builder.SavedModelBuilder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=signatures)
        builder.save()


def odd_examples(folder: Path) -> None:
    """Signatures made for Classify and Regress that these cannot use, each for one reason."""
    with tf.Graph().as_default(), tf1.Session() as session:
        info = tf1.saved_model.utils.build_tensor_info
        make = tf1.saved_model.signature_def_utils.build_signature_def
        serialized, other = (info(tf1.placeholder(tf.string, [None], name=name)) for name in ("a", "b"))
        rows = tf.shape(session.graph.get_tensor_by_name("a:0"))[:1]
        one, two = (tf.ones(tf.concat([rows, [width]], 0)) for width in (1, 2))
        scores, labels = info(two), info(tf.as_string(two))
        single = info(tf.ones([1, 2]))
        only = {"inputs": serialized}
        classify: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
            "good": (only, {"scores": scores, "classes": labels}),
            "labels_only": (only, {"classes": labels}),
            "other_inputs": ({"inputs": other}, {"scores": scores}),
            "two_inputs": ({"inputs": serialized, "more": other}, {"scores": scores}),
            "named_input": ({"x": serialized}, {"scores": scores}),
            "three_outputs": (only, {"scores": scores, "classes": labels, "more": scores}),
            "named_output": (only, {"y": scores}),
            "flat": (only, {"scores": info(two[:, 0])}),
            "flat_labels": (only, {"classes": info(tf.as_string(two[:, 0]))}),
            "numbers_for_labels": (only, {"classes": scores}),
            "doubles": (only, {"scores": info(tf.cast(two, tf.float64))}),
            "one_row": (only, {"scores": single}),
            "one_row_of_labels": (only, {"classes": info(tf.as_string(tf.ones([1, 2])))}),
            "unlike_widths": (only, {"scores": scores, "classes": info(tf.as_string(one))}),
        }
        regress: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
            "values": (only, {"outputs": info(two[:, 0])}),
            "values_two_inputs": ({"inputs": serialized, "more": other}, {"outputs": scores}),
            "values_two_outputs": (only, {"outputs": scores, "more": scores}),
            "values_named_input": ({"x": serialized}, {"outputs": scores}),
            "values_named_output": (only, {"y": scores}),
            "one_value": (only, {"outputs": info(tf.ones([1]))}),
            "scalar": (only, {"outputs": info(tf.ones([]))}),
            "cube": (only, {"outputs": info(one[:, :, tf.newaxis])}),
        }
        signatures = {
            name: make(inputs, outputs, f"tensorflow/serving/{kind}")
            for kind, found in (("classify", classify), ("regress", regress))
            for name, (inputs, outputs) in found.items()
        }
        signatures["by_hand"] = make(only, {"scores": scores}, "made/by/hand")
        builder = tf1.saved_model.builder.SavedModelBuilder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=signatures)
        builder.save()


def kinds(folder: Path) -> None:
    """`id_<dtype>` returns its input for each type; `two` has two inputs and two outputs; and others."""

    signatures = {
        f"id_{name}": function(lambda x: {"y": tf.identity(x)}, spec(None, tf.as_dtype(name), "x"))
        for name in DTYPES
    }
    signatures["two"] = function(
        lambda a, b: {"total": tf.reduce_sum(a, 1) + tf.cast(b, tf.float32), "doubled": b * 2},
        spec([None, 2], tf.float32, "a"),
        spec([None], tf.int32, "b"),
    )
    signatures["strings"] = function(
        lambda s: {"text": tf.strings.join([s, "!"]), "raw_bytes": s}, spec([None], tf.string, "s")
    )
    signatures["number"] = function(lambda s: {"n": tf.strings.to_number(s)}, spec([None], tf.string, "s"))
    signatures["matrix"] = function(
        lambda x: {"y": tf.linalg.matmul(x, tf.ones([3, 2]))}, spec([None, 3], tf.float32, "x")
    )
    signatures["uneven"] = function(
        lambda x: {"y": x, "z": tf.concat([x, x], 0)}, spec([None], tf.float32, "x")
    )
    signatures["slow"] = function(lambda x: {"y": x + burn(200) * 0}, spec([None], tf.float32, "x"))
    signatures["size"] = function(
        lambda x: {"n": tf.fill(tf.shape(x), tf.shape(x)[0])}, spec([None], tf.float32, "x")
    )
    signatures["tf2_classify"] = function(
        lambda inputs: {
            "scores": tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([2], tf.float32)})["x"]
        },
        spec([None], tf.string, "inputs"),
    )
    signatures["serving_default"] = signatures["matrix"]
    module = tf.Module()
    module.functions = list(signatures.values())
    tf.saved_model.save(module, str(folder), signatures=signatures)


def keras_in_a_module(folder: Path) -> None:
    """A `tf.Module` around a Keras 3 model: Python's loader runs it, a session finds no variables."""
    import keras

    model = keras.Sequential([keras.layers.Input([3]), keras.layers.Dense(2)])
    module = tf.Module()
    module.model = model
    module.serve = function(lambda x: {"y": model(x)}, spec([None, 3], tf.float32, "x"))
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})


def burn(steps: Any) -> Any:
    """A scalar that takes about a hundredth of a second a step to compute, and no interpreter lock."""
    size = 300
    start = tf.random.stateless_uniform([size, size], [1, 2]) / size

    def step(i: Any, m: Any) -> tuple[Any, Any]:
        return i + 1, tf.linalg.matmul(m, start) / tf.reduce_max(m)

    _, m = tf.while_loop(lambda i, _: i < steps, step, (tf.constant(0), start))
    return tf.reduce_mean(m)


def slow_to_load(folder: Path, steps: int) -> None:
    """A TF1 model whose init op works for a while."""
    with tf.Graph().as_default(), tf1.Session() as session:
        x = tf1.placeholder(tf.float32, [None], name="x")
        y = tf.identity(x, name="y")
        info = tf1.saved_model.utils.build_tensor_info
        signature = tf1.saved_model.signature_def_utils.build_signature_def(
            {"x": info(x)}, {"y": info(y)}, "tensorflow/serving/predict"
        )
        init = tf.group(burn(steps), name="slow_init")
        builder = tf1.saved_model.builder.SavedModelBuilder(str(folder))
        builder.add_meta_graph_and_variables(
            session, ["serve"], signature_def_map={"serving_default": signature}, main_op=init
        )
        builder.save()


def counter(folder: Path) -> None:
    """How many runs there have been, this one among them."""
    module = tf.Module()
    module.runs = tf.Variable(0)
    module.serve = function(
        lambda x: {"y": tf.fill(tf.shape(x), module.runs.assign_add(1))}, spec([None], tf.float32, "x")
    )
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})


def tagged(folder: Path, addends: Mapping[tuple[str, ...], float]) -> None:
    """A graph for each set of tags: y = x + addend."""
    builder = tf1.saved_model.builder.SavedModelBuilder(str(folder))
    for index, (tags, addend) in enumerate(addends.items()):
        with tf.Graph().as_default(), tf1.Session() as session:
            x = tf1.placeholder(tf.float32, [None])
            info = tf1.saved_model.utils.build_tensor_info
            signature = tf1.saved_model.signature_def_utils.build_signature_def(
                {"x": info(x)}, {"y": info(x + addend)}, "tensorflow/serving/predict"
            )
            signatures = {"serving_default": signature}
            if index:
                builder.add_meta_graph(list(tags), signature_def_map=signatures)
            else:
                builder.add_meta_graph_and_variables(session, list(tags), signature_def_map=signatures)
    builder.save()


def corrupt(folder: Path) -> None:
    """A version whose saved_model.pb is not one."""
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"\xff\xfe not a SavedModel" * 10)


def warmup(folder: Path, requests: Iterable[Any]) -> None:
    """Write the warm-up file of the model in `folder`: one record for each PredictRequest."""
    logs = (protos.PredictionLog(predict_log={"request": request}) for request in requests)
    warmup_records(folder, [log.SerializeToString() for log in logs])


def warmup_records(folder: Path, records: Iterable[bytes]) -> None:
    """Write the warm-up file of the model in `folder`."""
    extra = folder / "assets.extra"
    extra.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as writer:
        for record in records:
            writer.write(record)
