"""Every recipe from data to a published model that answers as its Keras model does."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests.training.conftest import Published
from tests.training.recipes import OPTIONS
from training import recipes
from training.config import PRESETS, Hyperparameters, Options, preset
from training.errors import BadInput
from training.models import dense, wide_deep
from training.published import examine, read_card
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
        ("resnet", {"depth": "resnet21"}, "there is no depth 'resnet21'; there are: resnet8"),
        ("sequential", {"depth": "resnet8"}, "--depth is for resnet and vgg, not for sequential"),
        ("vgg", {"depth": "vgg16"}, "vgg16 halves the sides 5 times; these are 8x8"),
        ("resnet", {"augment": "wild", "epochs": 1}, "there is no augmentation 'wild'"),
        ("resnet", {"mixed_precision": "int8", "epochs": 1}, "there is no precision 'int8'"),
        ("resnet", {"data": "digit"}, "there is no data set 'digit'; there are: digits, mnist"),
    ],
)
def test_options_that_cannot_be(recipe: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    from rich.console import Console

    from training import job

    with pytest.raises(BadInput, match=message):
        job.train(recipe, Options(out=tmp_path, **options), Console())
    assert list(tmp_path.iterdir()) == []


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
