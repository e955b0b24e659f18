"""Models of one's own: what becomes a classifier with four signatures, what keeps its own, what is noted."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.foreign import IMAGES, classifier, labels_file, scaled
from training.errors import BadInput
from training.foreign import publish_file
from training.published import examine, read_card
from training.served import served


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


def test_a_versions_folder_is_called_as_its_model(tmp_path: Path) -> None:
    """TensorFlow Serving's guide exports into such folders: export/flowers/3."""
    classifier().export(tmp_path / "flowers" / "3", verbose=False)
    published = publish_file(tmp_path / "flowers" / "3", tmp_path / "models")
    assert published.folder == tmp_path / "models" / "flowers" / "1"


def test_labels_that_begin_with_numbers_are_noted(tmp_path: Path) -> None:
    classifier().save(tmp_path / "m.keras")
    published = publish_file(tmp_path / "m.keras", tmp_path, labels=labels_file(tmp_path, "0 a\n1 b\n2 c\n"))
    assert published.card["labels"] == ["0 a", "1 b", "2 c"]
    assert any(note.startswith("the labels begin with numbers, as in '2 c'; if") for note in published.notes)


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
    with pytest.raises(BadInput, match="is not an image classifier, so there is nothing that --labels could"):
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


def test_scores_that_are_no_probabilities_are_noted(tmp_path: Path) -> None:
    weights = keras.initializers.RandomNormal(stddev=1, seed=1)
    scaled(keras.layers.Dense(3, kernel_initializer=weights)).save(tmp_path / "logits.keras")
    (note,) = publish_file(tmp_path / "logits.keras", tmp_path / "models").notes
    assert note.startswith("the scores are not probabilities: those of one image are -")
    scaled(keras.layers.Dense(3, activation="softmax")).save(tmp_path / "m.keras")
    assert publish_file(tmp_path / "m.keras", tmp_path / "models").notes == ()


def test_a_lone_score_is_noted(tmp_path: Path) -> None:
    """Such as that of a sigmoid, which every introduction to two classes ends with: one class always wins."""
    scaled(keras.layers.Dense(1, activation="sigmoid")).save(tmp_path / "m.keras")
    (note,) = publish_file(tmp_path / "m.keras", tmp_path / "models").notes
    assert note.startswith("there is one score an image, so one class, which is always on top; if it is the")


def test_a_lone_score_with_two_labels_is_that_of_the_second(tmp_path: Path) -> None:
    model = scaled(keras.layers.Dense(1, activation="sigmoid"))
    model.save(tmp_path / "m.keras")
    labels = labels_file(tmp_path, "cat\ndog\n")
    published = publish_file(tmp_path / "m.keras", tmp_path / "models", labels=labels)
    assert published.notes == ()
    assert published.card["labels"] == ["cat", "dog"]
    with served(published.folder) as loaded:
        scores = loaded.run("serving_default", {"images": IMAGES})["scores"]
    dog = np.asarray(model(IMAGES))
    np.testing.assert_allclose(scores, np.concatenate([1 - dog, dog], axis=1), atol=1e-5)


def test_a_lone_score_that_is_no_probability_has_no_second_class(tmp_path: Path) -> None:
    scaled(keras.layers.Dense(1, kernel_initializer="ones")).save(tmp_path / "m.keras")
    with pytest.raises(
        BadInput, match=r"to 16 examples it answers [0-9.]+ to [0-9.]+; end it with a sigmoid"
    ):
        publish_file(tmp_path / "m.keras", tmp_path / "models", labels=labels_file(tmp_path, "cat\ndog\n"))
    assert not (tmp_path / "models").exists()


UNSCALED = (
    "its first layer, {}, gets pixels of 0 to 255; if it was trained on others, publish it with --pixel-"
)


def test_a_model_that_gets_pixels_as_they_are_is_noted(tmp_path: Path) -> None:
    """Most are trained on 0 to 1: given 255 times as much, they answer confidently, and wrongly."""
    classifier().save(tmp_path / "m.keras")
    (note,) = publish_file(tmp_path / "m.keras", tmp_path / "models").notes
    assert note.startswith("its first layer, conv2d")
    assert (
        " gets pixels of 0 to 255; if it was trained on others, publish it with --pixel-scale 1/255" in note
    )
    assert publish_file(tmp_path / "m.keras", tmp_path / "models", pixel_scale=1 / 255).notes == ()
    (note,) = publish_file(tmp_path / "m.keras", tmp_path / "models", pixel_scale=255.0).notes
    assert note == "--pixel-scale 255 makes pixels of 0 to 65,025; 1/255 of 0 to 1"


def test_a_model_inside_a_model_that_gets_pixels_as_they_are_is_noted(tmp_path: Path) -> None:
    images = keras.Input((6, 6, 3))
    keras.Model(images, classifier()(keras.layers.RandomFlip()(images))).save(tmp_path / "around.keras")
    (note,) = publish_file(tmp_path / "around.keras", tmp_path / "models").notes
    assert "gets pixels of 0 to 255" in note
    inside = keras.layers.Rescaling(1 / 255)(images)
    keras.Model(images, classifier()(inside)).save(tmp_path / "scales.keras")
    assert publish_file(tmp_path / "scales.keras", tmp_path / "models").notes == ()


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


def test_a_mark_before_the_first_label_is_none_of_it(tmp_path: Path) -> None:
    """Editors on Windows write one in front of UTF-8."""
    classifier().save(tmp_path / "m.keras")
    labels = labels_file(tmp_path, "\ufeffa\nb\nc\n")
    assert publish_file(tmp_path / "m.keras", tmp_path, labels=labels).card["labels"] == ["a", "b", "c"]
