"""A published model is what the design says, and what does not serve as it should is not published."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from training.errors import BadInput, ProofFailed
from training.export import WARMUP_FILE, Exported, check_close, of_keras, prove, write
from training.inspection import show
from training.models.resnet import ResNet
from training.published import read_card
from training.recipes.base import Interface
from training.served import served
from training.sources import digits as digits_data

pytestmark = pytest.mark.timeout(900)  # whoever comes first trains the models that are shared

LABELS = tuple("abc")
CARD: dict[str, Any] = {"schema": 1, "metrics": {}}

SCORES_OF_ARCHIVE = """
import sys
import numpy as np
import training.models.resnet  # registers the classes, nothing else of ours
import keras
model = keras.models.load_model(sys.argv[1])
np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), verbose=0))
assert "training.loop" not in sys.modules
"""


def small_resnet() -> keras.Model:
    keras.utils.set_random_seed(3)
    model = ResNet(3, "resnet8")
    model(np.zeros((1, 8, 8, 1), np.uint8))
    return model


def exported(**changes: Any) -> Exported:
    interface = Interface({"images": tf.TensorSpec((None, 8, 8, 1), tf.uint8, "images")}, ("scores",))
    golden = {"images": np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1)).astype(np.uint8)}
    return of_keras(small_resnet(), interface, golden, LABELS, **changes)


def test_the_four_signatures(digits: Path) -> None:
    with served(digits) as loaded:
        tensors = {
            name: (
                {key: (info.dtype, [dim.size for dim in info.tensor_shape.dim]) for key, info in part.items()}
                for part in (definition.inputs, definition.outputs)
            )
            for name, definition in loaded.signatures.items()
            if not name.startswith("__")
        }
    shapes = {name: tuple(parts) for name, parts in tensors.items()}
    scores = (tf.float32.as_datatype_enum, [-1, 10])
    text, index = (tf.string.as_datatype_enum, [-1]), (tf.int32.as_datatype_enum, [-1])
    assert shapes == {
        "serving_default": ({"images": (tf.uint8.as_datatype_enum, [-1, 8, 8, 1])}, {"scores": scores}),
        "serving_bytes": ({"image_bytes": text}, {"scores": scores}),
        "describe": ({"index": index}, {"label": text, "card": text}),
        "self_test": ({"index": index}, {"expected": scores, "actual": scores}),
    }


def test_the_digits_resnet_is_good_and_says_so(digits: Path) -> None:
    data = digits_data()
    with served(digits) as loaded:
        scores = loaded.run("serving_default", {"images": data.test_images})["scores"]
    accuracy = float((scores.argmax(axis=1) == data.test_classes).mean())
    card = read_card(digits)
    assert card is not None
    assert accuracy >= 0.97
    assert card["metrics"]["held_out_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert np.allclose(scores.sum(axis=1), 1.0, atol=1e-5)


def test_the_card_is_the_same_inside_and_outside(digits: Path) -> None:
    card = read_card(digits)
    assert card is not None
    assert card == json.loads((digits / "assets.extra" / "card.json").read_text())
    assert (card["schema"], card["version"], card["recipe"], card["precision"]) == (1, 1, "resnet", "float32")
    assert card["input"] == {
        "height": 8,
        "width": 8,
        "channels": 1,
        "resize": "antialiased bilinear",
        "alpha": "over white",
    }
    assert card["labels"] == [str(digit) for digit in range(10)]
    assert sum(card["training"]["class_distribution"]) == pytest.approx(1.0, abs=1e-4)
    assert len(json.dumps(card)) < 64_000
    for drawing in ("curves.png", "confusion.png"):
        assert (digits / "assets.extra" / drawing).read_bytes().startswith(b"\x89PNG")


def test_describe_and_self_test_take_any_index(digits: Path) -> None:
    index = np.array([-5, 0, 3, 9, 10, 2**31 - 1], np.int32)
    with served(digits) as loaded:
        labels = loaded.run("describe", {"index": index})["label"]
        tested = loaded.run("self_test", {"index": index})
    assert [label.decode() for label in labels] == ["0", "0", "3", "9", "9", "9"]
    assert tested["expected"].shape == (6, 10)
    assert np.abs(tested["expected"] - tested["actual"]).max() <= 1e-4


def test_bytes_and_pixels_give_the_same_scores(digits: Path) -> None:
    images = digits_data().test_images[:12]
    files = np.array([tf.io.encode_png(image).numpy() for image in images], dtype=object)
    with served(digits) as loaded:
        by_pixels = loaded.run("serving_default", {"images": images})["scores"]
        by_bytes = loaded.run("serving_bytes", {"image_bytes": files})["scores"]
    assert np.abs(by_pixels - by_bytes).max() <= 1e-5


def test_the_archive_gives_the_served_scores_in_a_fresh_process(digits: Path, tmp_path: Path) -> None:
    images = digits_data().test_images[:64]
    np.save(tmp_path / "images.npy", images)
    files = [
        str(digits / "assets.extra" / "model.keras"),
        *(str(tmp_path / f"{n}.npy") for n in ("images", "scores")),
    ]
    subprocess.run(
        [sys.executable, "-c", SCORES_OF_ARCHIVE, *files],
        check=True,
        cwd=Path(__file__).parents[2],
        capture_output=True,
    )
    with served(digits) as loaded:
        scores = loaded.run("serving_default", {"images": images})["scores"]
    assert np.abs(np.load(tmp_path / "scores.npy") - scores).max() <= 1e-5


def test_warmup_covers_every_signature_at_two_sizes(digits: Path) -> None:
    path = digits / "assets.extra" / WARMUP_FILE
    requests = [
        prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        for record in tf.data.TFRecordDataset(str(path))
    ]
    seen = {
        (request.model_spec.signature_name, next(iter(request.inputs.values())).tensor_shape.dim[0].size)
        for request in requests
    }
    names = ("serving_default", "serving_bytes", "describe", "self_test")
    assert seen == {(name, size) for name in names for size in (1, 8)}


@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_or_not_the_model_serves_alike(tmp_path: Path, freeze: bool) -> None:
    model = exported(freeze=freeze)
    write(model, tmp_path, "m", CARD)
    prove(model, tmp_path)
    variables = tf.train.list_variables(str(tmp_path / "variables" / "variables"))
    weights = [name for name, _ in variables if name.startswith("tracked/")]
    assert len(weights) == (0 if freeze else len(model.tracked))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_passes_its_own_self_test(tmp_path: Path, precision: str) -> None:
    from training.precision import computing_in

    reference = small_resnet()
    with computing_in(precision):
        half = ResNet(3, "resnet8")
        half(np.zeros((1, 8, 8, 1), np.uint8))
    half.set_weights(reference.get_weights())
    plain = exported()
    model = of_keras(half, plain.interface, plain.golden, LABELS, precision)
    assert half.stages[0][0].branch[0].compute_dtype == precision
    assert half.count_params() == reference.count_params()
    write(model, tmp_path, "m", CARD)
    prove(model, tmp_path)
    with served(tmp_path) as loaded:
        tested = loaded.run("self_test", {"index": np.arange(9, dtype=np.int32)})
    assert tested["actual"].dtype == np.float32
    assert np.abs(tested["actual"] - tested["expected"]).max() <= 0.005
    assert np.abs(tested["actual"] - plain.expected()).max() <= 0.05
    again = keras.models.load_model(tmp_path / "assets.extra" / "model.keras")
    assert again.stages[0][0].branch[0].compute_dtype == precision


def test_variables_that_no_session_restores_fail_the_proof(tmp_path: Path) -> None:
    """What the design warns of: `tf.saved_model.load` runs such a model, TensorFlow Serving does not."""
    model = exported(freeze=False)
    write(model, tmp_path, "m", CARD)
    checkpoint = tmp_path / "variables" / "variables.index"
    checkpoint.unlink()
    with pytest.raises(ProofFailed, match="check 'loads in a session' failed"):
        prove(model, tmp_path)


def test_a_version_that_cannot_be_run_is_bad_input(tmp_path: Path) -> None:
    for name in ("variables", "tags", "text"):
        write(exported(freeze=False), tmp_path / name, "m", CARD)
    (tmp_path / "variables" / "variables" / "variables.index").unlink()
    graph = tmp_path / "tags" / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(graph.read_bytes())
    saved.meta_graphs[0].meta_info_def.tags[:] = ["train"]
    graph.write_bytes(saved.SerializeToString())
    (tmp_path / "text" / "saved_model.pb").write_bytes(b"no graph")
    for name in ("variables", "tags", "text"):
        with pytest.raises(BadInput, match=f"{name} cannot be run: "):
            read_card(tmp_path / name)
    with pytest.raises(BadInput, match=r"saved_model\.pb is not a SavedModel"):
        show(tmp_path / "text", Console(quiet=True))


@pytest.mark.parametrize("answer", [{"about": "a model"}, {"card": "plain text"}, {"card": "[1]"}])
def test_somebody_elses_describe_is_no_card(answer: dict[str, str], tmp_path: Path) -> None:
    module = tf.Module()
    spec = tf.TensorSpec((None,), tf.int32, "index")
    module.f = tf.function(
        lambda index: {name: tf.fill(tf.shape(index), text) for name, text in answer.items()},
        input_signature=[spec],
    )
    tf.saved_model.save(module, str(tmp_path), signatures={"describe": module.f})
    assert read_card(tmp_path) is None


def test_a_model_that_answers_otherwise_fails_the_proof(tmp_path: Path) -> None:
    model = exported()
    write(model, tmp_path, "m", CARD)
    other = exported()
    assert other.archive is not None
    other.archive.set_weights([weight * 0.5 for weight in other.archive.get_weights()])
    with pytest.raises(ProofFailed, match="check 'served equals original' failed: differs by"):
        prove(other, tmp_path)


def test_what_is_close_depends_on_how_large_the_numbers_of_a_column_are() -> None:
    expected = np.array([[250_000.0, 0.5], [-1.0, 0.25]])
    check_close("x", np.array([[250_001.0, 0.5], [0.0, 0.25]]), expected, 1e-5)
    with pytest.raises(ProofFailed, match=r"differs by 3, more than 2\.5"):
        check_close("x", np.array([[250_003.0, 0.5], [-1.0, 0.25]]), expected, 1e-5)
    with pytest.raises(ProofFailed, match=r"differs by 0\.0001, more than 1e-05"):
        check_close("x", np.array([[250_000.0, 0.5], [-1.0, 0.2501]]), expected, 1e-5)
    with pytest.raises(ProofFailed, match="differs by nan"):
        check_close("x", np.array([[250_000.0, np.nan], [-1.0, 0.25]]), expected, 1e-5)


def test_a_warmup_request_that_fails_is_named(tmp_path: Path) -> None:
    from training.export import write_warmup

    model = exported()
    write(model, tmp_path, "m", CARD)
    bad = [("serving_bytes", {"image_bytes": np.array([b"no image"], dtype=object)})]
    write_warmup(tmp_path / "assets.extra" / WARMUP_FILE, "m", bad)
    with pytest.raises(ProofFailed, match=r"check 'warm-up' failed: request 0 \(serving_bytes\)"):
        prove(model, tmp_path)


def test_a_frozen_graph_that_differs_is_not_written(tmp_path: Path) -> None:
    model = exported()
    noisy = Exported(
        lambda inputs: {"scores": model.call(inputs)["scores"] + tf.random.uniform([])},
        model.tracked,
        model.interface,
        model.golden,
    )
    with pytest.raises(ProofFailed, match="check 'frozen equals unfrozen' failed"):
        write(noisy, tmp_path, "m", CARD)
