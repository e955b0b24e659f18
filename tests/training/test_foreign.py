"""Models of one's own: archives and SavedModels published with signatures, or refused with a reason."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from training.errors import BadInput, ProofFailed
from training.foreign import publish_file
from training.models.wide_deep import WideDeep
from training.precision import computing_in
from training.published import examine, read_card
from training.served import served

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3)).astype(np.uint8)


def classifier(classes: int = 3) -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6, 6, 3), name="photo"),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(classes, activation="softmax"),
        ]
    )


def labels_file(folder: Path, text: str) -> Path:
    (folder / "labels.txt").write_text(text, encoding="utf-8")
    return folder / "labels.txt"


@pytest.mark.parametrize("kind", ["archive", "SavedModel"])
def test_a_classifier_gets_the_four_signatures(kind: str, tmp_path: Path) -> None:
    model = classifier()
    path = tmp_path / ("mine.keras" if kind == "archive" else "mine")
    if kind == "archive":
        model.save(path)
    else:
        model.export(path, verbose=False)
    labels = labels_file(tmp_path, "Katze\nHund\nBär\n")
    published = publish_file(path, tmp_path / "models", labels=labels, pixel_scale=1 / 255)
    assert published.folder == tmp_path / "models" / "mine" / "1"
    with served(published.folder) as loaded:
        names = {name for name in loaded.signatures if not name.startswith("__")}
        scores = loaded.run("serving_default", {"images": IMAGES})["scores"]
        described = loaded.run("describe", {"index": np.arange(3, dtype=np.int32)})["label"]
    assert names == {"serving_default", "serving_bytes", "describe", "self_test"}
    np.testing.assert_allclose(scores, model(IMAGES / np.float32(255)), atol=1e-5)
    assert [label.decode() for label in described] == ["Katze", "Hund", "Bär"]
    card = read_card(published.folder)
    assert card is not None
    assert card["input"]["channels"] == 3
    assert card["training"] is None
    archived = (published.folder / "assets.extra" / "model.keras").exists()
    assert archived == (kind == "archive")


def test_labels_default_to_numbers_and_versions_count(tmp_path: Path) -> None:
    classifier(12).save(tmp_path / "mine.keras")
    publish_file(tmp_path / "mine.keras", tmp_path, "other", freeze=False)
    second = publish_file(tmp_path / "mine.keras", tmp_path, "other")
    assert second.version == 2
    assert second.card["labels"] == [str(index) for index in range(12)]


def test_several_named_inputs_stay_as_they_are(tmp_path: Path) -> None:
    inputs = {"a": keras.Input((2,), name="a"), "b": keras.Input((3,), name="b")}
    joined = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
    model = keras.Model(
        inputs, {"sum": keras.layers.Dense(1)(joined), "twice": keras.layers.Dense(2)(joined)}
    )
    model.save(tmp_path / "two.keras")
    published = publish_file(tmp_path / "two.keras", tmp_path / "models")
    rows: dict[str, Any] = {"a": np.ones((4, 2), np.float32), "b": np.ones((4, 3), np.float32)}
    with served(published.folder) as loaded:
        outputs = loaded.run("serving_default", rows)
    assert {name: output.shape for name, output in outputs.items()} == {"sum": (4, 1), "twice": (4, 2)}
    np.testing.assert_allclose(outputs["sum"], model(rows)["sum"], atol=1e-5)
    with pytest.raises(BadInput, match="is no image classifier, so there is nothing that --labels could"):
        publish_file(tmp_path / "two.keras", tmp_path, labels=labels_file(tmp_path, "x\n"))
    with pytest.raises(BadInput, match="only image classifiers and the models of recipes can be evaluated"):
        examine(published.folder, "digits")


def test_several_outputs_make_a_classifier_only_if_one_is_called_scores(tmp_path: Path) -> None:
    images = keras.Input((6, 6, 3))
    flat = keras.layers.Flatten()(images)
    boxes, classes = keras.layers.Dense(4)(flat), keras.layers.Dense(3, activation="softmax")(flat)
    for name, interface in (("classes", {"boxes", "classes"}), ("scores", {"scores"})):
        keras.Model(images, {"boxes": boxes, name: classes}).save(tmp_path / f"{name}.keras")
        published = publish_file(tmp_path / f"{name}.keras", tmp_path / "models")
        assert set(published.card["outputs"]) == interface
        assert (published.card["input"] is not None) == (name == "scores")


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


def test_large_scores_are_compared_by_their_own_size(tmp_path: Path) -> None:
    """Logits of hundreds are no more than five digits alike once batch normalization is folded and fused."""
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((16, 16, 3))])
    for _ in range(2):
        model.add(keras.layers.Conv2D(16, 3))
        model.add(keras.layers.BatchNormalization())
        model.add(keras.layers.ReLU())
    model.add(keras.layers.Flatten())
    model.add(keras.layers.Dense(3))
    model.save(tmp_path / "logits.keras")
    published = publish_file(tmp_path / "logits.keras", tmp_path / "models")
    images = np.random.default_rng(1).integers(0, 256, (9, 16, 16, 3)).astype(np.uint8)
    with served(published.folder) as loaded:
        scores = loaded.run("serving_default", {"images": images})["scores"]
    assert np.abs(scores).max() > 100
    np.testing.assert_allclose(scores, model(images), atol=0.01)


def test_scores_that_are_no_probabilities_are_noted(tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    layers = [keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    keras.Sequential(layers).save(tmp_path / "logits.keras")
    (note,) = publish_file(tmp_path / "logits.keras", tmp_path / "models").notes
    assert note.startswith("the scores are no probabilities: those of one image are -")
    classifier().save(tmp_path / "m.keras")
    assert publish_file(tmp_path / "m.keras", tmp_path / "models").notes == ()


def test_a_lone_score_is_noted(tmp_path: Path) -> None:
    """Such as that of a sigmoid, which every introduction to two classes ends with: one class always wins."""
    layers = [keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(1, activation="sigmoid")]
    keras.Sequential(layers).save(tmp_path / "m.keras")
    (note,) = publish_file(tmp_path / "m.keras", tmp_path / "models").notes
    assert note.startswith("there is one score an image, so one class, which is always on top;")


def test_a_pixel_scale_where_it_can_do_nothing(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "m.keras")
    with pytest.raises(BadInput, match="is no image classifier, so --pixel-scale has nothing to multiply"):
        publish_file(tmp_path / "m.keras", tmp_path / "models", pixel_scale=0.5)
    layers = [keras.Input((6, 6, 3), dtype="uint8"), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    keras.Sequential([*layers, keras.layers.Dense(3)]).save(tmp_path / "whole.keras")
    with pytest.raises(BadInput, match="takes pixels as uint8, which --pixel-scale would round"):
        publish_file(tmp_path / "whole.keras", tmp_path / "models", pixel_scale=1 / 255)


def test_the_first_batch_of_a_model_without_an_input_is_not_the_only_one(tmp_path: Path) -> None:
    model = keras.Sequential([keras.layers.Dense(1)])
    model(np.zeros((3, 2), np.float32))
    model.save(tmp_path / "m.keras")
    published = publish_file(tmp_path / "m.keras", tmp_path / "models")
    ((name, entry),) = published.card["inputs"].items()
    assert entry["shape"] == [None, 2]
    with served(published.folder) as loaded:
        assert loaded.run("serving_default", {name: np.ones((5, 2), np.float32)})["outputs"].shape == (5, 1)


def test_indices_of_a_small_vocabulary_are_tried(tmp_path: Path) -> None:
    layers = [keras.Input((4,), dtype="int32"), keras.layers.Embedding(9, 2), keras.layers.Flatten()]
    keras.Sequential([*layers, keras.layers.Dense(1)]).save(tmp_path / "m.keras")
    assert publish_file(tmp_path / "m.keras", tmp_path / "models").version == 1


@pytest.mark.parametrize("name", ["my input", "class"])
def test_an_input_whose_name_no_signature_can_have(name: str, tmp_path: Path) -> None:
    inputs = keras.Input((2,), name=name)
    keras.Model(inputs, keras.layers.Dense(1)(inputs)).save(tmp_path / "m.keras")
    with pytest.raises(BadInput, match=f"calls an input '{name}'; a name must be of letters"):
        publish_file(tmp_path / "m.keras", tmp_path / "models")


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_images_to_images_make_no_classifier(kind: str, tmp_path: Path) -> None:
    images = keras.Input((8, 8, 3), dtype=kind, name="images")
    masks = keras.layers.Conv2D(2, 3, padding="same")(keras.layers.Rescaling(1 / 255)(images))
    keras.Model(images, masks).save(tmp_path / "m.keras")
    published = publish_file(tmp_path / "m.keras", tmp_path / "models")
    assert (published.card["task"], published.card["input"]) == ("own", None)
    with served(published.folder) as loaded:
        assert {"serving_default", "describe", "self_test"} == {
            name for name in loaded.signatures if not name.startswith("__")
        }


@pytest.mark.parametrize("shape", [(8, 8, 4), (8, 8, 3)])
def test_tensors_called_as_a_classifiers_make_none(shape: tuple[int, int, int], tmp_path: Path) -> None:
    """Neither images with transparency nor masks, though they are `images` uint8 and `scores`."""
    module = tf.Module()
    kept = [1, 2] if shape[2] == 4 else []
    module.f = tf.function(
        lambda images: {"scores": tf.reduce_mean(tf.cast(images, tf.float32), kept)},
        input_signature=[tf.TensorSpec((None, *shape), tf.uint8, "images")],
    )
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.f)
    published = publish_file(tmp_path / "m", tmp_path / "models")
    assert (published.card["task"], published.card["input"]) == ("own", None)
    with served(published.folder) as loaded:
        assert "serving_bytes" not in loaded.signatures


@pytest.mark.parametrize("kind", ["archive", "SavedModel"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_model_in_half_precision_is_published_as_that(precision: str, kind: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    with computing_in(precision):
        layers = [keras.Input((16, 16, 3)), keras.layers.Rescaling(1 / 255)]
        for _ in range(2):
            layers += [keras.layers.Conv2D(16, 3), keras.layers.BatchNormalization(), keras.layers.ReLU()]
        layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(5)]
        model = keras.Sequential([*layers, keras.layers.Activation("softmax", dtype="float32")])
    if kind == "archive":
        model.save(tmp_path / "m.keras")
    else:
        model.export(tmp_path / "m", verbose=False)
    published = publish_file(tmp_path / ("m.keras" if kind == "archive" else "m"), tmp_path / "models")
    assert published.card["precision"] == precision


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


def test_a_recurrent_layer_with_dropout_keeps_a_state_of_its_own(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((5, 3)), keras.layers.GRU(4, dropout=0.2), keras.layers.Dense(2)])
    model.save(tmp_path / "m.keras")
    published = publish_file(tmp_path / "m.keras", tmp_path / "models")
    ((name, _),) = published.card["inputs"].items()
    rows = np.random.default_rng(0).random((7, 5, 3), np.float32)
    with served(published.folder) as loaded:
        outputs = loaded.run("serving_default", {name: rows})["outputs"]
    np.testing.assert_allclose(outputs, model(rows), atol=1e-5)


def test_a_model_that_cannot_be_run_on_any_number_of_examples(tmp_path: Path) -> None:
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.ops.reshape(keras.ops.reshape(inputs, (8, 2)), (-1, 4))).save(
        tmp_path / "m.keras"
    )
    with pytest.raises(BadInput, match=r"m.keras cannot be run on examples: Input to reshape is a tensor"):
        publish_file(tmp_path / "m.keras", tmp_path / "models")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_pixel_scale_that_leaves_no_image(scale: float, tmp_path: Path) -> None:
    classifier().save(tmp_path / "m.keras")
    with pytest.raises(BadInput, match=f"--pixel-scale is {scale}; it must be a number above 0"):
        publish_file(tmp_path / "m.keras", tmp_path / "models", pixel_scale=scale)


def test_an_unregistered_lambda_is_refused(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x * 2)])
    model.save(tmp_path / "code.keras")
    with pytest.raises(
        BadInput, match="has a Lambda layer that carries Python code, and loading would run it"
    ):
        publish_file(tmp_path / "code.keras", tmp_path / "models")
    assert not (tmp_path / "models").exists()


class Unregistered(keras.layers.Layer):  # type: ignore[misc]
    """A layer that no other process knows."""

    def call(self, inputs: Any) -> Any:
        return inputs * 3


def test_an_unknown_class_is_named(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((2,)), Unregistered()]).save(tmp_path / "m.keras")
    import zipfile

    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["config.json"] = parts["config.json"].replace(b"tests.training.test_foreign", b"somebody.elses")
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


def test_a_mark_before_the_first_label_is_none_of_it(tmp_path: Path) -> None:
    """Editors on Windows write one in front of UTF-8."""
    classifier().save(tmp_path / "m.keras")
    labels = labels_file(tmp_path, "\ufeffa\nb\nc\n")
    assert publish_file(tmp_path / "m.keras", tmp_path, labels=labels).card["labels"] == ["a", "b", "c"]


def test_labels_and_places_that_are_none(tmp_path: Path) -> None:
    classifier().save(tmp_path / "m.keras")
    file, models = tmp_path / "m.keras", tmp_path / "models"
    with pytest.raises(BadInput, match=r"--labels .*none: No such file or directory; it is a text file with"):
        publish_file(file, models, labels=tmp_path / "none")
    with pytest.raises(BadInput, match=r"--labels .*m.keras: not UTF-8 text"):
        publish_file(file, models, labels=file)
    with pytest.raises(BadInput, match=r"--out .*m.keras/models: .*m.keras is no folder"):
        publish_file(file, file / "models")
    with pytest.raises(BadInput, match=r"'a/b' is no name for a model"):
        publish_file(file, models, "a/b")
    file.rename(tmp_path / "my model.keras")
    with pytest.raises(BadInput, match=r"'my model' is no name for a model: .*; choose one with --name"):
        publish_file(tmp_path / "my model.keras", models)
    assert not models.exists()


def test_files_that_are_no_models(tmp_path: Path) -> None:
    for name in ("m.keras", "lambda.keras"):
        (tmp_path / name).write_bytes(b"no archive")
    classifier().save(tmp_path / "damaged.keras")
    archive = bytearray((tmp_path / "damaged.keras").read_bytes())
    archive[archive.index(b"config.json") + 20] ^= 1
    (tmp_path / "damaged.keras").write_bytes(archive)
    (tmp_path / "m.txt").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "saved_model.pb").touch()
    for name, message in (
        ("none.keras", "no such file or folder"),
        ("m.keras", "m.keras cannot be loaded"),
        ("lambda.keras", "lambda.keras cannot be loaded"),
        ("damaged.keras", "damaged.keras cannot be loaded: Bad CRC-32"),
        ("m.txt", "neither a .keras file nor a SavedModel folder"),
        ("folder", "cannot be loaded as a SavedModel"),
        ("half", "has an empty saved_model.pb: is it written still?"),
    ):
        with pytest.raises(BadInput, match=message):
            publish_file(tmp_path / name, tmp_path / "models")


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


def test_a_model_with_a_table_is_published_unfrozen(tmp_path: Path) -> None:
    module = tf.Module()
    keys, values = tf.constant([0, 1, 2], tf.int64), tf.constant([1.0, 2.0, 3.0])
    module.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), -1.0)
    spec = tf.TensorSpec((None, 2), tf.int64, "x")
    module.f = tf.function(lambda x: {"y": module.table.lookup(x)}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.f)
    published = publish_file(tmp_path / "m", tmp_path / "models")
    with served(published.folder) as loaded:
        outputs = loaded.run("serving_default", {"x": np.array([[2, 0], [7, 1]])})
    assert outputs["y"].tolist() == [[3.0, 1.0], [-1.0, 2.0]]


@pytest.mark.parametrize("freeze", [True, False])
def test_an_archive_with_a_table_is_published_with_it(freeze: bool, tmp_path: Path) -> None:
    ids = keras.Input((2,), dtype="int64", name="ids")
    looked_up = keras.layers.IntegerLookup(vocabulary=[50, 60])(ids)
    vectors = keras.layers.Flatten()(keras.layers.Embedding(3, 2)(looked_up))
    model = keras.Model(ids, keras.layers.Dense(1)(vectors))
    model.save(tmp_path / "m.keras")
    published = publish_file(tmp_path / "m.keras", tmp_path / "models", freeze=freeze)
    rows = np.array([[60, 50], [7, 60]])
    with served(published.folder) as loaded:
        outputs = loaded.run("serving_default", {"ids": rows})
    np.testing.assert_allclose(outputs["outputs"], model(rows), atol=1e-5)


@pytest.mark.parametrize("graphs", [[["serve"]], [["train"], ["serve"]]])
def test_a_saved_model_of_tensorflow_1_with_a_table(graphs: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("5\n6\n")
    line, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        words = tf.lookup.TextFileInitializer(str(tmp_path / "words.txt"), tf.int64, line, tf.int64, number)
        x = tf.compat.v1.placeholder(tf.int64, [None, 2])
        y = tf.lookup.StaticHashTable(words, -1).lookup(x)
        session.run(tf.compat.v1.tables_initializer())
        builder = tf.compat.v1.saved_model.Builder(str(tmp_path / "m"))
        signature = tf.compat.v1.saved_model.predict_signature_def({"x": x}, {"y": y})
        builder.add_meta_graph_and_variables(
            session, graphs[0], {"serving_default": signature}, main_op=tf.compat.v1.tables_initializer()
        )
        for tags in graphs[1:]:
            builder.add_meta_graph(tags, {"serving_default": signature})
        builder.save()
    published = publish_file(tmp_path / "m", tmp_path / "models")
    with served(published.folder) as loaded:
        assert loaded.run("serving_default", {"x": [[6, 5], [7, 6]]})["y"].tolist() == [
            [1.0, 0.0],
            [-1.0, 1.0],
        ]


@pytest.mark.parametrize("resource", [True, False])
def test_a_saved_model_of_tensorflow_1(resource: bool, tmp_path: Path) -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [None, 2])
        w = tf.compat.v1.get_variable("w", initializer=[[1.0], [2.0]], use_resource=resource)
        session.run(w.initializer)
        tf.compat.v1.saved_model.simple_save(session, str(tmp_path / "m"), {"x": x}, {"y": x @ w})
    if not resource:
        with pytest.raises(BadInput, match=r"variables of TensorFlow 1's old kind, which cannot be written"):
            publish_file(tmp_path / "m", tmp_path / "models")
        return
    published = publish_file(tmp_path / "m", tmp_path / "models")
    with served(published.folder) as loaded:
        assert loaded.run("serving_default", {"x": [[3.0, 4.0]]})["y"].tolist() == [[11.0]]


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
    assert list((tmp_path / "models" / "m").iterdir()) == []
