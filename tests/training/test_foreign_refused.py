"""Models of one's own, labels and scales that cannot be published: each refused with its reason."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.foreign import IMAGES, classifier, labels_file
from training.errors import BadInput, ProofFailed
from training.foreign import publish_file
from training.models.wide_deep import WideDeep
from training.served import served


def test_an_unregistered_lambda_is_refused(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x * 2)])
    model.save(tmp_path / "code.keras")
    with pytest.raises(
        BadInput, match="has a Lambda layer that carries Python code, and loading would run it"
    ):
        publish_file(tmp_path / "code.keras", tmp_path / "models")
    assert not (tmp_path / "models").exists()


class Unregistered(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """A layer that no other process knows."""

    def call(self, inputs: Any) -> Any:
        return inputs * 3


def test_an_unknown_class_is_named(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((2,)), Unregistered()]).save(tmp_path / "m.keras")
    import zipfile

    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["config.json"] = parts["config.json"].replace(__name__.encode(), b"somebody.elses")
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    with pytest.raises(
        BadInput, match=r"it needs the class .*Unregistered, which is not .*model.export\(FOLD"
    ):
        publish_file(tmp_path / "m.keras", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat, dog, bird\n", "has 1 label, a line each, and the model has 3 classes"),
        ("a\nb\n", "has 2 labels, a line each, and the model has 3 classes"),
        ("a\nb\nc\nd\n", "has 4 labels"),
        ("a\n\nc\n", "line 2 is blank"),
        ("", "has 0 labels"),
    ],
)
def test_labels_that_do_not_fit(text: str, message: str, tmp_path: Path) -> None:
    classifier().save(tmp_path / "m.keras")
    with pytest.raises(BadInput, match=message):
        publish_file(tmp_path / "m.keras", tmp_path / "models", labels=labels_file(tmp_path, text))
    assert not (tmp_path / "models").exists()


def test_labels_and_places_that_are_none(tmp_path: Path) -> None:
    classifier().save(tmp_path / "m.keras")
    file, models = tmp_path / "m.keras", tmp_path / "models"
    with pytest.raises(BadInput, match=r"--labels .*none: No such file or directory; pass a text file with"):
        publish_file(file, models, labels=tmp_path / "none")
    with pytest.raises(BadInput, match=r"--labels .*m.keras: not UTF-8 text"):
        publish_file(file, models, labels=file)
    with pytest.raises(BadInput, match=r"--out .*m.keras/models: .*m.keras is not a folder"):
        publish_file(file, file / "models")
    with pytest.raises(BadInput, match=r"'a/b' is not a valid name for a model"):
        publish_file(file, models, "a/b")
    file.rename(tmp_path / "my model.keras")
    with pytest.raises(
        BadInput, match=r"'my model' is not a valid name for a model: .*; choose one with --name"
    ):
        publish_file(tmp_path / "my model.keras", models)
    assert not models.exists()


def test_files_that_are_no_models(tmp_path: Path) -> None:
    for name in ("m.keras", "lambda.keras"):
        (tmp_path / name).write_bytes(b"no archive")
    classifier().save(tmp_path / "damaged.keras")
    archive = bytearray((tmp_path / "damaged.keras").read_bytes())
    archive[archive.index(b"config.json") + 20] ^= 1
    (tmp_path / "damaged.keras").write_bytes(archive)
    for name in ("m.txt", "old.h5", "m.weights.h5"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder").mkdir()
    for version in ("9", "12"):
        (tmp_path / "model" / version).mkdir(parents=True)
        (tmp_path / "model" / version / "saved_model.pb").touch()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "saved_model.pb").touch()
    for name, message in (
        ("none.keras", "no such file or folder"),
        ("m.keras", "m.keras is no .keras file, which is a zip archive; it may be cut short, or of another"),
        ("lambda.keras", "lambda.keras is no .keras file"),
        ("damaged.keras", "damaged.keras cannot be loaded: BadZipFile: Bad CRC-32"),
        ("m.txt", "neither a .keras file nor a SavedModel folder$"),
        ("old.h5", r"; `keras.models.load_model\('old.h5'\).save\('old.keras'\)` makes a .keras file of it"),
        ("m.weights.h5", "it holds weights only: load them into their model"),
        ("folder", "folder: no saved_model.pb in it$"),
        ("model", "model: no saved_model.pb in it; there is one in .*/model/12$"),
        ("half", "has an empty saved_model.pb: is it written still?"),
    ):
        with pytest.raises(BadInput, match=message):
            publish_file(tmp_path / name, tmp_path / "models")


def test_a_list_of_outputs_is_refused(tmp_path: Path) -> None:
    """Their names are lost, and two of one shape would come out as one tensor [2, N, 1]."""
    inputs = keras.Input((2,))
    outputs = [keras.layers.Dense(1)(inputs), keras.layers.Dense(1)(inputs)]
    keras.Model(inputs, outputs).save(tmp_path / "m.keras")
    with pytest.raises(BadInput, match="answers a list of outputs; several outputs must be a dictionary"):
        publish_file(tmp_path / "m.keras", tmp_path / "models")


def test_several_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    a, b, c = (keras.Input((2,), name=name) for name in "abc")
    total = keras.layers.Add()([a, b, c])
    keras.Model({"a": a, "more": {"b": b, "c": c}}, total).save(tmp_path / "in.keras")
    keras.Model({"a": a, "b": b, "c": c}, {"y": total, "more": [total, total]}).save(tmp_path / "out.keras")
    with pytest.raises(BadInput, match=r"in.keras takes several inputs as 'more'; each must have a name"):
        publish_file(tmp_path / "in.keras", tmp_path / "models")
    with pytest.raises(BadInput, match=r"out.keras answers several outputs as 'more'; each must have a name"):
        publish_file(tmp_path / "out.keras", tmp_path / "models")


@pytest.mark.parametrize("name", ["my input", "class"])
def test_an_input_whose_name_no_signature_can_have(name: str, tmp_path: Path) -> None:
    inputs = keras.Input((2,), name=name)
    keras.Model(inputs, keras.layers.Dense(1)(inputs)).save(tmp_path / "m.keras")
    with pytest.raises(BadInput, match=f"calls an input '{name}'; a name must be of letters"):
        publish_file(tmp_path / "m.keras", tmp_path / "models")


def test_a_model_that_augments_what_it_is_asked_is_refused(tmp_path: Path) -> None:
    """As Keras exports every model of layers that augment: they go on doing so."""
    keras.utils.set_random_seed(1)
    layers = [keras.Input((6, 6, 3)), keras.layers.RandomFlip(), keras.layers.Rescaling(1 / 255)]
    model = keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")])
    model.export(tmp_path / "exported", verbose=False)
    with pytest.raises(BadInput, match=r"answers .* otherwise when it is asked again, as with dropout or"):
        publish_file(tmp_path / "exported", tmp_path / "models")
    model.save(tmp_path / "m.keras")
    published = publish_file(tmp_path / "m.keras", tmp_path / "models")
    with served(published.folder) as loaded:
        scores = loaded.run("serving_default", {"images": IMAGES})["scores"]
    np.testing.assert_allclose(scores, model(IMAGES, training=False), atol=1e-5)


def test_a_model_that_cannot_be_run_on_any_number_of_examples(tmp_path: Path) -> None:
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.ops.reshape(keras.ops.reshape(inputs, (8, 2)), (-1, 4))).save(
        tmp_path / "m.keras"
    )
    with pytest.raises(BadInput, match=r"m.keras cannot be run on examples: .*Input to reshape is a tensor"):
        publish_file(tmp_path / "m.keras", tmp_path / "models")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_pixel_scale_that_leaves_no_image(scale: float, tmp_path: Path) -> None:
    classifier().save(tmp_path / "m.keras")
    with pytest.raises(BadInput, match=f"--pixel-scale is {scale}; it must be a number above 0"):
        publish_file(tmp_path / "m.keras", tmp_path / "models", pixel_scale=scale)


@pytest.mark.parametrize(
    ("shape", "instead"),
    [
        ((3, 8, 6), "keras.Input((8, 6, 3)) and keras.layers.Permute((3, 1, 2))"),
        ((28, 20), "keras.Input((28, 20, 1)) and keras.layers.Reshape((28, 20))"),
        ((784,), ""),
    ],
)
def test_what_makes_a_model_no_image_classifier_is_told(
    shape: tuple[int, ...], instead: str, tmp_path: Path
) -> None:
    layers = [keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax")]
    keras.Sequential(layers).save(tmp_path / "m.keras")
    reason = f"it takes [N, {', '.join(map(str, shape))}], and not images [N, H, W, 1 or 3]"
    reason += f"; if these are images, begin it with {instead}" if instead else ""
    with pytest.raises(BadInput) as refused:
        publish_file(tmp_path / "m.keras", tmp_path / "models", labels=labels_file(tmp_path, "a\nb\n"))
    assert str(refused.value).endswith(f"nothing that --labels could name: {reason}")
    (note,) = publish_file(tmp_path / "m.keras", tmp_path / "models").notes
    assert note == f"it is not an image classifier, and is called by :predict: {reason}"


@pytest.mark.parametrize(
    ("image", "layer"),
    [
        (keras.Input((8, 6, 3)), keras.layers.Permute((3, 1, 2))),
        (keras.Input((28, 20, 1)), keras.layers.Reshape((28, 20))),
    ],
)
def test_what_is_told_to_make_it_one_does(image: Any, layer: keras.Layer, tmp_path: Path) -> None:
    inner = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax")])
    keras.Sequential([image, layer, inner]).save(tmp_path / "m.keras")
    labels = labels_file(tmp_path, "a\nb\n")
    assert publish_file(tmp_path / "m.keras", tmp_path / "models", labels=labels).card["labels"] == ["a", "b"]


def test_a_pixel_scale_where_it_can_do_nothing(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "m.keras")
    with pytest.raises(
        BadInput, match="is not an image classifier, so --pixel-scale has nothing to multiply"
    ):
        publish_file(tmp_path / "m.keras", tmp_path / "models", pixel_scale=0.5)
    layers = [keras.Input((6, 6, 3), dtype="uint8"), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    keras.Sequential([*layers, keras.layers.Dense(3)]).save(tmp_path / "whole.keras")
    with pytest.raises(BadInput, match="takes pixels as uint8, which --pixel-scale would round"):
        publish_file(tmp_path / "whole.keras", tmp_path / "models", pixel_scale=1 / 255)


def test_inputs_of_any_size_are_refused(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()]).save(
        tmp_path / "m.keras"
    )
    with pytest.raises(BadInput, match="only the first dimension may be open"):
        publish_file(tmp_path / "m.keras", tmp_path)


def test_a_subclass_of_several_inputs_does_not_say_their_shapes(tmp_path: Path) -> None:
    model = WideDeep()
    model({"wide": np.zeros((1, 5), np.float32), "deep": np.zeros((1, 8), np.float32)})
    model.save(tmp_path / "m.keras")
    with pytest.raises(
        BadInput, match=r"does not say what shape it takes; build .* or, where it was made, `m"
    ):
        publish_file(tmp_path / "m.keras", tmp_path)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((None, None, 3), "takes inputs of any size"),
        ((4, 3), r"takes batches of 4 only \(x \(4, 3\)\); the first dimension must be open"),
        ((), "takes inputs of any size"),
        (None, "takes inputs of any size"),
    ],
)
def test_shapes_of_a_saved_model_that_cannot_be_batches(shape: Any, message: str, tmp_path: Path) -> None:
    module = tf.Module()
    module.f = tf.function(lambda x: {"y": x * 2}, input_signature=[tf.TensorSpec(shape, tf.float32, "x")])
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.f)
    with pytest.raises(BadInput, match=message):
        publish_file(tmp_path / "m", tmp_path / "models")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (tf.strings.as_string, r"answers y, string \(None, 2\); only numbers \[N, ...\] can be published"),
        (tf.reduce_sum, r"answers y, float32 \(\); only numbers"),
        (lambda x: tf.reduce_sum(x, 0), r"answers y \(2,\) to 16 examples; only an answer to each, numbers"),
    ],
)
def test_answers_of_a_saved_model_that_are_no_batch_of_numbers(
    answer: Any, message: str, tmp_path: Path
) -> None:
    module = tf.Module()
    spec = tf.TensorSpec((None, 2), tf.float32, "x")
    module.f = tf.function(lambda x: {"y": answer(x)}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.f)
    with pytest.raises(BadInput, match=message):
        publish_file(tmp_path / "m", tmp_path / "models")


def test_a_saved_model_without_serving_default(tmp_path: Path) -> None:
    module = tf.Module()
    module.f = tf.function(lambda x: x + 1, input_signature=[tf.TensorSpec((None, 2), tf.float32)])
    tf.saved_model.save(module, str(tmp_path / "m"), signatures={"other": module.f})
    with pytest.raises(BadInput, match=r"has no signature serving_default; there are .*other"):
        publish_file(tmp_path / "m", tmp_path)


def test_a_model_that_answers_no_number_fails_its_proof(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.set_weights([np.full((2, 1), np.nan, np.float32), np.zeros(1, np.float32)])
    model.save(tmp_path / "m.keras")
    with pytest.raises(ProofFailed, match="differs by nan"):
        publish_file(tmp_path / "m.keras", tmp_path / "models")
    assert not (tmp_path / "models").exists()
