"""A whole `sluice train`: plan, fit every variant, judge, publish the first."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from typing import Any

import keras
from rich.console import Console

from training import recipes
from training.card import card, training_section
from training.checkpoint import Checkpoint, alone
from training.config import Options, check_place
from training.distribution import Distribution, distribution
from training.errors import PublishFailed, TrainingError
from training.export import of_keras
from training.history import History
from training.loop import Run, fit, predict
from training.precision import computing_in
from training.progress import reporting
from training.recipes.base import Metrics, Plan, Variant
from training.releases import Published, golden_inputs, release, released_by

LOST_BY_PRECISION = 0.002  # the share of held-out examples that computing in half precision may cost
_STATE = ".training"  # below the folder of models; hidden from whoever looks for models


def train(recipe: str, options: Options, console: Console) -> Published | None:
    """Trains a recipe and publishes what it made; None in a worker process that is not the chief.

    What could not be published in the end raises `BadInput` before anything is trained.
    """
    options.check_folders()
    spread = distribution(
        options.strategy, lambda: _note(console, "waiting for all the workers that TF_CONFIG names")
    )
    plan = recipes.plan(recipe, options)
    check_place(options.out, plan.model_name)
    lock = options.out / _STATE / f"{plan.model_name}-{plan.recipe}.lock"
    with alone(lock) if spread.chief else nullcontext():
        return _run(plan, options, spread, console)


def _run(plan: Plan, options: Options, spread: Distribution, console: Console) -> Published | None:
    for note in plan.problem.notes:
        _note(console, note)
    results = {
        title: _trained(plan, title, variant, options, spread, console)
        for title, variant in plan.variants.items()
    }
    if not spread.chief:
        # otherwise a chief that failed to publish would come back alone, and wait for this worker for ever
        spread.wait_for_all()
        return None
    first = next(iter(plan.variants))
    model, history, metrics = results[first]
    if len(results) > 1:
        metrics["variants"] = {title: result[2].get(plan.headline) for title, result in results.items()}
    published = released_by(options.out / plan.model_name, history.run)
    if published is None:
        published = _published(plan, model, history, metrics, options)
    else:
        _note(console, f"{published.folder} was published before this run was interrupted")
    try:
        spread.wait_for_all()
    except TrainingError as error:  # they come back, and would wait for ever for a chief that is done
        raise TrainingError(f"{published.folder} is published, but {error}") from error
    for title in reversed(plan.variants):  # the published one's last: it records that it is published
        _checkpoint(plan, title, options).remove()
    return published


def _note(console: Console, text: str) -> None:
    console.print(f"note: {text}", highlight=False, soft_wrap=True)


def _checkpoint(plan: Plan, title: str, options: Options) -> Checkpoint:
    """Where a run keeps its state until its model is published."""
    problem = plan.problem
    settings = {
        **dataclasses.asdict(plan.hyperparameters),
        **{name: getattr(options, name) for name in ("data", "depth", "image_size", "examples")},
        # a folder may have changed since the run began
        "labels": list(problem.labels),
        "training examples": len(problem.train),
        "validation examples": len(problem.validation),
    }
    run = f"{plan.model_name}-{plan.recipe}-{title}".replace(" ", "-")
    return Checkpoint(options.out / _STATE / f"{run}.npz", settings)


def _trained(
    plan: Plan, title: str, variant: Variant, options: Options, spread: Distribution, console: Console
) -> tuple[keras.Model, History, Metrics]:
    """One variant, trained: a copy that computes in float32, and its metrics on the held-out examples."""
    checkpoint = _checkpoint(plan, title, options)
    if options.resume and not checkpoint.path.exists():
        _note(console, f"there is no {checkpoint.path} to resume; {title} is trained from the beginning")
    with reporting(console, title, plan.hyperparameters.epochs) as report:
        run = Run(
            report=report,
            checkpoint=checkpoint,
            resume=options.resume,
            tensorboard=options.tensorboard and options.tensorboard / title,
            distribution=spread,
        )
        fitted, history = fit(plan.problem, variant, plan.hyperparameters, run)
    model = _copy(plan, variant, fitted, "float32")
    return model, history, _judged(plan, model)


def _copy(plan: Plan, variant: Variant, model: keras.Model, precision: str) -> keras.Model:
    """The same weights in a new model, without an optimizer, that computes in this type."""
    with computing_in(precision):
        copy = plan.problem.interface.built(variant.build())
    copy.set_weights(model.get_weights())
    return copy


def _judged(plan: Plan, model: keras.Model) -> Metrics:
    outputs = predict(plan.problem.interface, model, plan.problem.test)
    return plan.judge(plan.problem, outputs) | plan.look_inside(model)


def _published(
    plan: Plan, model: keras.Model, history: History, metrics: Metrics, options: Options
) -> Published:
    problem = plan.problem
    if options.precision != "float32":
        variant = next(iter(plan.variants.values()))
        model = _copy(plan, variant, model, options.precision)
        metrics = _allowed(plan, metrics, _judged(plan, model), options.precision)
    described = card(
        model=plan.model_name,
        recipe=plan.recipe,
        task=plan.task,
        interface=problem.interface,
        labels=problem.labels,
        precision=options.precision,
    )
    described |= {"training": training_section(plan, history), "metrics": metrics}
    exported = of_keras(
        model, problem.interface, golden_inputs(problem), problem.labels, options.precision, options.freeze
    )
    return release(options.out / plan.model_name, exported, described, history)


def _allowed(plan: Plan, before: Metrics, after: Metrics, precision: str) -> Metrics:
    """The metrics in the new precision, with both figures; refuses one that costs too much."""
    old, new = before[plan.headline], after[plan.headline]
    lost = old - new if plan.higher_is_better else (new - old) / max(old, 1e-9)
    figures: dict[str, Any] = {"float32": old, precision: new}
    if lost > LOST_BY_PRECISION:
        raise PublishFailed(
            f"not published: computing in {precision} takes {plan.headline} from {old} to {new},"
            f" and it may lose {LOST_BY_PRECISION:.1%} at most"
        )
    kept = {name: value for name, value in before.items() if name == "variants"}
    return {**after, **kept, "precision": {"metric": plan.headline, **figures}}
