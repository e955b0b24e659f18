"""Every recipe from data to a published model that answers as its Keras model does."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.training.conftest import Published
from tests.training.recipes import OPTIONS
from training import job, recipes
from training.card import training_section
from training.config import PRESETS, Hyperparameters, Options, preset
from training.errors import BadInput
from training.history import History
from training.models import dense, wide_deep
from training.published import compare, examine, read_card
from training.recipes.pairs import pairs
from training.releases import golden_inputs
from training.served import served

pytestmark = pytest.mark.timeout(900)  # whoever comes first trains the models that are shared


def card_of(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "assets.extra" / "card.json").read_text())
    return card


def test_every_recipe_is_published_here() -> None:
    assert {name.removesuffix("-images") for name in OPTIONS} == set(PRESETS)


@pytest.mark.parametrize("name", OPTIONS)
def test_served_is_what_keras_answers(name: str, published: Published) -> None:
    folder = published(name)
    recipe = name.removesuffix("-images")
    plan = recipes.plan(recipe, Options(data=OPTIONS[name].get("data")))
    model = keras.models.load_model(folder / "assets.extra" / "model.keras")
    inputs = {key: array[:40] for key, array in plan.problem.test.inputs.items()}
    expected = plan.problem.interface.call(model, inputs)
    with served(folder) as loaded:
        actual = loaded.run("serving_default", inputs)
        described = loaded.run("describe", {"index": np.zeros(2, np.int32)})
        tested = loaded.run("self_test", {"index": np.arange(4, dtype=np.int32)})
    assert set(actual) == set(plan.problem.interface.outputs)
    for key, output in actual.items():
        assert len(output) == 40
        np.testing.assert_allclose(output, expected[key], atol=1e-5)
    assert json.loads(described["card"][1])["recipe"] == recipe
    assert np.abs(tested["expected"] - tested["actual"]).max() <= 1e-4


def test_a_typo_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(BadInput, match=r"there is no recipe 'resnt'; did you mean 'resnet'\?"):
        preset("resnt")
    with pytest.raises(BadInput, match="there is no recipe 'x'; there are: sequential, functional,"):
        preset("x")


def test_simple_dense_learns_the_line(published: Published) -> None:
    folder = published("simple-dense")
    metrics = card_of(folder)["metrics"]
    assert metrics["w"] == pytest.approx(2.0, abs=0.05)
    assert metrics["b"] == pytest.approx(-1.0, abs=0.05)
    with served(folder) as loaded:
        answer = loaded.run("serving_default", {"x": np.array([[10.0]], np.float32)})
    assert answer["y"].shape == (1, 1)
    assert answer["y"][0, 0] == pytest.approx(19.0, abs=0.5)


def test_huber_trains_the_same_three_ways(published: Published) -> None:
    variants = card_of(published("huber"))["metrics"]["variants"]
    assert set(variants) == {"function", "wrapped function", "class"}
    values = list(variants.values())
    assert values == pytest.approx([values[0]] * 3, abs=1e-6)
    assert values[0] > 0  # not yet learned, so that the three could differ


def test_siamese_tells_pairs(published: Published) -> None:
    folder = published("siamese")
    assert card_of(folder)["metrics"]["held_out_accuracy"] >= 0.95
    assert card_of(folder)["input"] is None
    examined = examine(folder, None)
    assert examined.metrics["held_out_accuracy"] == card_of(folder)["metrics"]["held_out_accuracy"]


def test_evaluating_needs_no_folder_of_models(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = published("simple-dense")
    (tmp_path / "models").write_text("not to be written to")
    monkeypatch.chdir(tmp_path)
    assert examine(folder, None).metrics["held_out_mae"] == card_of(folder)["metrics"]["held_out_mae"]


def test_models_of_different_data_are_not_compared_unasked(published: Published) -> None:
    with pytest.raises(BadInput, match="were made for digits and for diabetes; name the data with --data"):
        compare(published("sequential"), published("wide-deep"), None)


def test_only_the_same_examples_judged_right_or_wrong_are_compared(published: Published) -> None:
    with pytest.raises(BadInput, match="only models whose answers are right or wrong can be compared"):
        compare(published("simple-dense"), published("simple-dense"), None)
    with pytest.raises(BadInput, match="are judged on 359 and 718 examples; a paired comparison needs the"):
        compare(published("sequential"), published("siamese"), "digits")


def test_lambda_recipes_compare_three_activations(published: Published) -> None:
    for name in ("lambda-abs", "lambda-relu"):
        metrics = card_of(published(name))["metrics"]
        assert next(iter(metrics["variants"])) == name
        assert set(metrics["variants"]) == {"lambda-abs", "lambda-relu", "relu"}
        assert metrics["variants"][name] == metrics["held_out_accuracy"]


def test_branches_have_two_outputs_and_labels(published: Published) -> None:
    card = read_card(published("branches"))
    assert card is not None
    assert card["outputs"] == ["scores", "parity"]
    assert card["metrics"]["parity_accuracy"] > 0.6
    assert len(card["labels"]) == 10


def test_wide_deep_is_the_same_both_ways() -> None:
    keras.utils.set_random_seed(5)
    inputs = {
        "wide": np.random.default_rng(1).random((6, 5), np.float32),
        "deep": np.random.default_rng(2).random((6, 8), np.float32),
    }
    functional, subclass = wide_deep.wide_deep(5, 8), wide_deep.WideDeep()
    before = subclass(inputs)
    assert functional.count_params() == subclass.count_params() == 8 * 30 + 30 + 930 + 36 + 31
    subclass.set_weights(functional.get_weights())
    expected, actual = functional(inputs), subclass(inputs)
    for name in ("main", "auxiliary"):
        np.testing.assert_allclose(actual[name], expected[name], atol=1e-6)
        assert np.abs(np.array(before[name]) - np.array(actual[name])).max() > 1e-3


def test_sequential_and_functional_are_the_same() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)
    left, right = dense.sequential((8, 8, 1), 10), dense.functional((8, 8, 1), 10)
    right.set_weights(left.get_weights())
    np.testing.assert_allclose(left(images), right(images), atol=1e-6)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("wide-deep", {"data": "digits"}, "wide-deep is made for --data diabetes, not digits"),
        ("resnet", {"depth": "resnet21"}, "resnet has no depth 'resnet21'; there are: resnet8"),
        ("resnet", {"depth": "vgg7"}, "resnet has no depth 'vgg7'; there are: resnet8"),
        ("vgg", {"depth": "resnet8"}, "vgg has no depth 'resnet8'; there are: vgg4, vgg7, vgg16"),
        ("resnet", {"image_size": 32}, "--image-size is for folders and zips of images; digits has 8x8"),
        ("siamese", {"image_size": 32}, "--image-size is for folders and zips of images; digits has 8x8"),
        ("huber", {"image_size": 32}, "--image-size is for recipes of images, not for huber"),
        ("wide-deep", {"examples": 10}, "--examples is for recipes of images, not for wide-deep"),
        ("simple-dense", {"augment": "shift"}, "--augment is for recipes of images, not for simple-dense"),
        ("resnet", {"seed": -1}, "the seed is -1; it must be within 0..4294967295"),
        ("resnet", {"seed": 2**32}, "the seed is 4294967296; it must be within"),
        ("resnet", {"learning_rate": 0.0}, "the learning rate is 0.0; it must be a number above 0"),
        ("resnet", {"learning_rate": float("nan")}, "the learning rate is nan; it must be"),
        ("resnet", {"learning_rate": float("inf")}, "the learning rate is inf; it must be"),
        ("resnet", {"strategy": "tpu"}, "there is no strategy 'tpu'; there are: none, mirrored, multiworker"),
        ("resnet", {"tensorboard": Path(__file__)}, "--tensorboard .*test_recipes.py is not a folder"),
        ("sequential", {"depth": "resnet8"}, "--depth is for resnet and vgg, not for sequential"),
        ("vgg", {"depth": "vgg16"}, "vgg16 halves the sides 5 times; these are 8x8"),
        ("resnet", {"augment": "wild", "epochs": 1}, "there is no augmentation 'wild'"),
        ("resnet", {"mixed_precision": "int8", "epochs": 1}, "there is no precision 'int8'"),
        ("resnet", {"data": "digit"}, "there is no data set 'digit'; there are: digits, mnist"),
    ],
)
def test_options_that_cannot_be(recipe: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        job.train(recipe, Options(out=tmp_path, **options), Console())
    assert list(tmp_path.iterdir()) == []


def folder_of(path: Path, counts: dict[str, int], size: tuple[int, int] = (6, 6)) -> Path:
    """A folder of random grey images, so many of each class."""
    random = np.random.default_rng(0)
    for label, count in counts.items():
        (path / label).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, size[::-1]).astype(np.uint8)
            Image.fromarray(pixels).save(path / label / f"{number}.png")
    return path


@pytest.mark.parametrize(
    ("recipe", "size", "message"),
    [
        ("vgg", 3, "vgg4 halves the sides 2 times; these are 3x3"),
        ("residual", 1, "residual halves the sides once; these are 1x1"),
    ],
)
def test_images_that_are_too_small(recipe: str, size: int, message: str, tmp_path: Path) -> None:
    data = f"folder={folder_of(tmp_path / 'd', {'a': 5, 'b': 5})}"
    with pytest.raises(BadInput, match=message):
        recipes.plan(recipe, Options(data=data, image_size=size))


def test_no_image_is_its_own_partner() -> None:
    images = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1)
    classes = np.array([0, 0, 0, 1, 1, 1, 2])
    made = pairs(images, classes, rounds=50, seed=3)
    left, right = (made.inputs[side].reshape(-1) for side in ("left", "right"))
    same = made.targets["same"].reshape(-1) == 1.0
    assert len(made) == 50 * (6 * 2 + 1)  # 6 has only pairs of the other kind
    assert (left != right).all()
    assert ((classes[left] == classes[right]) == same).all()
    drawn = {(int(one), int(other)) for one, other in zip(left[same], right[same], strict=True)}
    assert len(drawn) == 2 * 3 * 2


@pytest.mark.parametrize("classes", [[], [0, 0, 0], [0, 1, 2]])
def test_images_that_make_no_pairs(classes: list[int]) -> None:
    with pytest.raises(BadInput, match=f"no pairs can be made of {len(classes)} images in"):
        pairs(np.zeros((len(classes), 2, 2, 1), np.uint8), np.array(classes, int), 1, seed=0)


def test_too_few_images_to_validate_on(tmp_path: Path) -> None:
    data = f"folder={folder_of(tmp_path / 'd', {'a': 2, 'b': 2})}"
    with pytest.raises(BadInput, match=r"d: 2 examples to train on and 0 to validate on, where 1 of each"):
        job.train("sequential", Options(out=tmp_path / "models", data=data), Console(quiet=True))
    assert not (tmp_path / "models").exists()


def test_a_folder_whose_name_is_none_for_a_model(tmp_path: Path) -> None:
    data = f"folder={folder_of(tmp_path / 'My photos', {'a': 20, 'b': 20})}"
    with pytest.raises(
        BadInput, match=r"'My photos' is not a valid name for a model: .*; choose one with --name"
    ):
        job.train("sequential", Options(out=tmp_path / "models", data=data, epochs=1), Console(quiet=True))
    assert not (tmp_path / "models").exists()


def test_pairs_are_judged_at_the_size_they_were_made_for(tmp_path: Path) -> None:
    data = f"folder={folder_of(tmp_path / 'd', {'a': 40, 'b': 40})}"
    options = Options(out=tmp_path / "models", name="pairs", data=data, image_size=9, epochs=1)
    published = job.train("siamese", options, Console(quiet=True))
    assert published is not None
    metrics = examine(published.folder, data).metrics
    assert metrics["held_out_accuracy"] == published.card["metrics"]["held_out_accuracy"]
    with pytest.raises(
        BadInput, match=r"the model takes images \(9, 9, 1\), and those of digits are \(8, 8, 1\)"
    ):
        examine(published.folder, "digits")


def test_every_hyperparameter_that_the_user_chose_counts() -> None:
    chosen: dict[str, Any] = {"epochs": 3, "batch_size": 5, "learning_rate": 0.5, "augment": "shift"}
    chosen |= {"mixed_precision": "float16", "seed": 9, "patience": 2}
    values = Options(**chosen).applied_to(Hyperparameters())
    assert {name: getattr(values, name) for name in chosen} == chosen
    assert Options().applied_to(values) == values


def test_the_card_tells_what_was_trained_on_and_how() -> None:
    plan = recipes.plan("sequential", Options(examples=300, seed=9))
    history = History([{"val_loss": loss} for loss in (3.0, 1.0, 2.0)], best_epoch=1, seconds=1.26)
    section = training_section(plan, history)
    classes = plan.problem.train.targets["scores"]
    assert section["class_distribution"] == [round((classes == one).mean(), 6) for one in range(10)]
    expected = {"data": "digits", "examples": len(classes), "epochs": 3, "best_epoch": 2, "seconds": 1.3}
    expected |= {"seed": 9, "batch_size": 64, "learning_rate": 2e-3, "augment": "none", "notes": []}
    expected["run"] = history.run
    expected["validation_examples"] = len(plan.problem.validation)
    assert {name: section[name] for name in expected} == expected
    assert set(section) == {*expected, "class_distribution"}


@pytest.mark.parametrize(
    ("chosen", "examples", "expected"),
    [(None, 54_000, 9), (None, 1_400, 30), (None, 10**9, 1), (20, 54_000, 20)],
)
def test_large_data_gets_fewer_epochs_unless_the_user_chose(
    chosen: int | None, examples: int, expected: int
) -> None:
    options = Options(epochs=chosen)
    values = options.applied_to(Hyperparameters(epochs=30, batch_size=64))
    assert options.within_steps(values, examples).epochs == expected


def test_the_golden_examples_are_of_as_many_classes_as_there_is_room_for() -> None:
    plan = recipes.plan("sequential", Options(examples=300))
    order = np.argsort(plan.problem.test.targets["scores"], kind="stable")  # a class after the other
    problem = dataclasses.replace(plan.problem, test=plan.problem.test.take(order))
    golden = golden_inputs(problem)["images"]
    assert len(golden) == 16
    firsts = [int(np.flatnonzero(problem.test.targets["scores"] == digit)[0]) for digit in range(10)]
    np.testing.assert_array_equal(golden[:10], problem.test.inputs["images"][firsts])
    assert len(np.unique(golden, axis=0)) == 16
