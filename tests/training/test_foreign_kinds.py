"""Models of one's own of each kind: half precision, state, tables, TensorFlow 1."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.foreign import IMAGES
from training.errors import BadInput
from training.foreign import publish_file
from training.precision import computing_in
from training.served import served


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


@pytest.mark.parametrize("kind", ["swish", "int8"])
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_a_model_with_gradients_of_its_own(kind: str, tmp_path: Path) -> None:
    """As every EfficientNet and every quantized layer has; they read variables, and freezing folds those."""
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Flatten(), keras.layers.Dense(4, activation="swish")]
    model = keras.Sequential([keras.Input((6, 6, 3)), *layers, keras.layers.Dense(3, activation="softmax")])
    if kind == "int8":
        model.quantize("int8")
    model.save(tmp_path / "m.keras")
    published = publish_file(tmp_path / "m.keras", tmp_path / "models")
    with served(published.folder) as loaded:
        scores = loaded.run("serving_default", {"images": IMAGES})["scores"]
    np.testing.assert_allclose(scores, model(IMAGES), atol=1e-5)


def test_a_recurrent_layer_with_dropout_keeps_a_state_of_its_own(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((5, 3)), keras.layers.GRU(4, dropout=0.2), keras.layers.Dense(2)])
    model.save(tmp_path / "m.keras")
    published = publish_file(tmp_path / "m.keras", tmp_path / "models")
    ((name, _),) = published.card["inputs"].items()
    rows = np.random.default_rng(0).random((7, 5, 3), np.float32)
    with served(published.folder) as loaded:
        outputs = loaded.run("serving_default", {name: rows})["outputs"]
    np.testing.assert_allclose(outputs, model(rows), atol=1e-5)


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
