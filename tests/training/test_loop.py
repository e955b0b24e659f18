"""The loop: schedules, early stopping, resuming where it was, half precision."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from training import recipes
from training.checkpoint import Checkpoint
from training.config import AUGMENTATIONS, Hyperparameters, Options
from training.distribution import Distribution
from training.errors import BadInput, TrainingError
from training.history import History
from training.loop import Run, _divisible, compiled, fit, predict, schedule
from training.pipeline import Examples, flip, shift, training_batches
from training.recipes.base import Plan

Metrics = dict[str, float]


def small_plan(recipe: str = "sequential", **options: Any) -> Plan:
    return recipes.plan(recipe, Options(**{"epochs": 4, "examples": 300, **options}))


def run_of(
    plan: Plan, values: Hyperparameters | None = None, **changes: Any
) -> tuple[keras.Model, History, list[int]]:
    reported: list[int] = []
    run = Run(report=lambda epoch, _: reported.append(epoch), **changes)
    model, history = fit(plan.problem, plan.variants[plan.recipe], values or plan.hyperparameters, run)
    return model, history, reported


class Killed(Exception):
    """Stands for SIGKILL: the process is gone before it can do anything more."""


def killed_after(epoch: int) -> Any:
    def report(number: int, _: Metrics) -> None:
        if number == epoch:
            raise Killed

    return report


def test_the_schedule_warms_up_and_falls_like_a_cosine() -> None:
    values = Hyperparameters(epochs=10, learning_rate=0.1, warmup=0.1)
    rate = schedule(values, steps_per_epoch=20)
    assert [float(rate(step)) for step in (0, 1, 20)] == pytest.approx([0.1 / 21, 0.2 / 21, 0.1], abs=1e-6)
    for step in (20, 65, 110, 155, 200):
        expected = 0.1 * (1 + math.cos(math.pi * (step - 20) / 180)) / 2
        assert float(rate(step)) == pytest.approx(expected, abs=1e-6)


def test_a_run_of_one_step_learns_in_it() -> None:
    plan = small_plan(epochs=1, examples=60)
    assert len(plan.problem.train) <= plan.hyperparameters.batch_size
    model, _, _ = run_of(plan)
    keras.utils.set_random_seed(plan.hyperparameters.seed)
    untrained = plan.problem.interface.built(plan.variants[plan.recipe].build())
    assert np.abs(model.get_weights()[0] - untrained.get_weights()[0]).max() > 0


def test_a_model_is_compiled_as_its_plan_says() -> None:
    plan = small_plan("branches", epochs=1)
    for decay in (0.0, 0.1):
        values = dataclasses.replace(plan.hyperparameters, weight_decay=decay)
        model = compiled(plan.problem.interface, plan.variants["branches"], values, steps_per_epoch=5)
        assert model.optimizer.weight_decay == decay
    _, history, _ = run_of(plan)
    (epoch,) = history.epochs
    both = epoch["val_scores_loss"] + 0.3 * epoch["val_parity_loss"]  # of one batch
    assert epoch["val_loss"] == pytest.approx(both, rel=1e-4)
    assert epoch["val_parity_loss"] > 0.1


class Ahead(Distribution):
    """Beside a worker that has found a checkpoint of three epochs."""

    def all_at(self, number: int) -> bool:
        return number == 3


def test_workers_go_on_from_one_epoch_or_not_at_all() -> None:
    with pytest.raises(
        BadInput, match=r"goes on after epoch 0, and another does not; --resume needs a folder"
    ):
        run_of(small_plan(epochs=1), distribution=Ahead())


class TwoReplicas(Distribution):
    """Two devices, as far as one looks before anything is computed."""

    @property
    def replicas(self) -> int:
        return 2


def test_what_replicas_cannot_share_is_left_out_or_refused() -> None:
    examples = Examples({"x": np.arange(7)}, {"y": np.arange(7) * 2})
    shared = _divisible(examples, 2)
    assert (shared.inputs["x"].tolist(), shared.targets["y"].tolist()) == ([*range(6)], [*range(0, 12, 2)])
    assert len(_divisible(examples, 1)) == 7
    with pytest.raises(BadInput, match="a batch of 33 cannot be shared by 2 replicas"):
        run_of(small_plan(batch_size=33), distribution=TwoReplicas())


def test_the_same_seed_gives_the_same_model_and_another_does_not() -> None:
    plan = small_plan(epochs=2)
    first, history, reported = run_of(plan)
    second, _, _ = run_of(plan)
    other, _, _ = run_of(plan, dataclasses.replace(plan.hyperparameters, seed=8))
    assert reported == [0, 1]
    assert len(history.epochs) == 2
    for left, right in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
    assert np.abs(first.get_weights()[0] - other.get_weights()[0]).max() > 1e-3


def test_it_stops_early_and_keeps_the_best_epoch() -> None:
    history = History()
    for loss in (3.0, 1.0, 2.0, 1.5):
        assert not history.should_stop(patience=3)
        history.add({"val_loss": loss})
    assert (history.best_epoch, history.best_loss) == (1, 1.0)
    history.add({"val_loss": 1.0})
    assert history.should_stop(patience=3)

    plan = small_plan(epochs=60)
    values = dataclasses.replace(plan.hyperparameters, learning_rate=0.05, patience=2)
    model, history, _ = run_of(plan, values)
    assert len(history.epochs) < 60
    assert len(history.epochs) - 1 - history.best_epoch == 2
    outputs = predict(plan.problem.interface, model, plan.problem.validation)["scores"]
    truth = plan.problem.validation.targets["scores"]
    loss = -np.log(np.maximum(outputs[np.arange(len(truth)), truth], 1e-7)).mean()
    assert loss == pytest.approx(history.best_loss, abs=1e-4)


def test_a_resumed_run_ends_where_it_would_have(tmp_path: Path) -> None:
    plan = small_plan("vgg", augment="shift-flip", examples=150)
    whole, history, _ = run_of(plan)
    checkpoint = Checkpoint(tmp_path / "run.npz", {"epochs": 4})
    with pytest.raises(Killed):
        fit(
            plan.problem,
            plan.variants["vgg"],
            plan.hyperparameters,
            Run(killed_after(1), checkpoint),
        )
    resumed, continued, reported = run_of(plan, checkpoint=checkpoint, resume=True)
    assert reported == [2, 3]
    assert continued.epochs == history.epochs
    for left, right in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
    again, finished, reported = run_of(plan, checkpoint=checkpoint, resume=True)
    assert reported == []  # it was finished: nothing is trained twice
    assert finished == continued
    np.testing.assert_array_equal(again.get_weights()[0], resumed.get_weights()[0])


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    plan = small_plan(epochs=1)
    run_of(plan, checkpoint=Checkpoint(tmp_path / "runs" / "run.npz", {"epochs": 1, "seed": 7}))
    other = Checkpoint(tmp_path / "runs" / "run.npz", {"epochs": 2, "seed": 7})
    with pytest.raises(BadInput, match="is of other settings: epochs was 1 and is now 2"):
        run_of(plan, checkpoint=other, resume=True)
    (tmp_path / "runs" / "run.npz").write_bytes(b"half a file")
    with pytest.raises(BadInput, match="is not a checkpoint"):
        run_of(plan, checkpoint=other, resume=True)
    (tmp_path / "runs" / "run.npz").write_bytes(b"")
    with pytest.raises(BadInput, match="is not a checkpoint"):
        run_of(plan, checkpoint=other, resume=True)
    other.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run.npz", {"epochs": 1})
    run_of(small_plan(epochs=1), checkpoint=checkpoint)
    with pytest.raises(BadInput, match="is of another model than this one; remove it to start afresh"):
        run_of(small_plan("vgg", epochs=1), checkpoint=checkpoint, resume=True)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_trains(precision: str) -> None:
    plan = small_plan("functional", mixed_precision=precision, epochs=5)
    model, history, _ = run_of(plan)
    assert {layer.compute_dtype for layer in model.layers if layer.name.startswith("dense")} == {precision}
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert history.epochs[-1]["loss"] < 0.8 * history.epochs[0]["loss"]


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    plan = small_plan("simple-dense", examples=None)
    values = dataclasses.replace(plan.hyperparameters, learning_rate=1e30)
    with pytest.raises(TrainingError, match="lower --learning-rate"):
        run_of(plan, values)


def test_a_validation_loss_that_is_no_number_ends_the_run() -> None:
    plan = small_plan("wide-deep", examples=None)
    validation = plan.problem.validation
    broken = {name: np.full_like(array, np.nan) for name, array in validation.inputs.items()}
    problem = dataclasses.replace(plan.problem, validation=Examples(broken, validation.targets))
    with pytest.raises(TrainingError, match="val_loss is nan in epoch 1; lower --learning-rate"):
        run_of(dataclasses.replace(plan, problem=problem))


def test_logs_that_cannot_be_written_end_the_run(tmp_path: Path) -> None:
    """Not as if there were no memory, which is what TensorFlow calls a full disk."""
    plan, logs = small_plan("simple-dense", examples=None), tmp_path / "logs"
    logs.write_text("no folder")
    run = Run(report=lambda epoch, _: None, tensorboard=logs)
    with pytest.raises(TrainingError, match=r"--tensorboard .*logs cannot be written to: Not a directory"):
        fit(plan.problem, plan.variants["simple-dense"], plan.hyperparameters, run)


class Hungry(keras.Model):  # type: ignore[misc]  # Keras has no types
    """Fails in a step of training as TensorFlow does when there is no memory."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def train_step(self, data: Any) -> Any:
        raise tf.errors.ResourceExhaustedError(None, None, f"OOM when allocating tensor with shape {data}")


def test_a_batch_that_does_not_fit_into_memory_ends_the_run() -> None:
    plan = small_plan("simple-dense", examples=None)
    variant = dataclasses.replace(plan.variants["simple-dense"], build=Hungry)
    with pytest.raises(TrainingError, match="no memory to train on batches of 32; lower --batch-size"):
        run_of(dataclasses.replace(plan, variants={"simple-dense": variant}))


def test_each_epoch_sees_every_example_once_in_its_own_order() -> None:
    count = 50
    examples = Examples({"x": np.arange(count)}, {"y": np.arange(count) * 2})
    seen = []
    for first in (0, 1):
        batches = training_batches(examples, 16, seed=3, first_epoch=first).take(8)
        pairs = [(inputs["x"].numpy(), targets["y"].numpy()) for inputs, targets in batches]
        assert [len(x) for x, _ in pairs] == [16, 16, 16, 2] * 2
        assert all((2 * x == y).all() for x, y in pairs)
        seen.append(np.concatenate([x for x, _ in pairs]))
    assert sorted(seen[0][:count]) == list(range(count))
    assert seen[0][:count].tolist() != seen[0][count:].tolist()
    assert seen[0][count:].tolist() == seen[1][:count].tolist()  # epoch 1 is epoch 1, wherever one began


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_gives_images_alike(name: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 16, 3)).astype(np.uint8)
    examples = Examples({"images": images}, {"index": np.arange(20)})
    inputs, targets = next(iter(training_batches(examples, 20, seed=3, augment=name)))
    found = inputs["images"].numpy()[np.argsort(targets["index"])]
    assert (found.dtype, found.shape) == (images.dtype, images.shape)
    assert (found == images).all() == (name == "none")


def test_augmentation_moves_and_mirrors_whole_images() -> None:
    images = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4, 1)
    images = np.repeat(images, 20, axis=0)
    moved = shift(images, [1, 2], 1).numpy()
    assert moved.shape == images.shape
    assert moved.dtype == np.uint8
    offsets = [
        int(image[1, 1, 0]) - int(before[1, 1, 0]) for image, before in zip(moved, images, strict=True)
    ]
    assert set(offsets) == {-5, -4, -3, -1, 0, 1, 3, 4, 5}  # by a pixel or none, down and across
    for image, offset in zip(moved, offsets, strict=True):
        assert (image[1:3, 1:3, 0] - int(image[1, 1, 0]) == [[0, 1], [4, 5]]).all(), offset
    mirrored = flip(images, [1, 2]).numpy()
    kept = (mirrored == images).all(axis=(1, 2, 3))
    assert 10 < kept.sum() < 50
    assert (mirrored[~kept] == images[~kept][:, :, ::-1]).all()
