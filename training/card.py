"""The model card: what a published model is, as JSON that travels inside its graph."""

from __future__ import annotations

import datetime
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from training.history import History
from training.pipeline import Examples
from training.recipes.base import Interface, Plan

SCHEMA = 1


def card(
    *, model: str, recipe: str, task: str, interface: Interface, labels: tuple[str, ...], precision: str
) -> dict[str, Any]:
    """The part of the card that every model has, trained here or not; `version` is filled in on publishing.

    `input` is null for what is not an image classifier; `inputs` and `outputs` describe every model.
    """
    return {
        "schema": SCHEMA,
        "model": model,
        "version": None,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "recipe": recipe,
        "task": task,
        "framework": {"tensorflow": tf.__version__, "keras": keras.__version__},
        "input": _image_input(interface),
        "inputs": {
            name: {"dtype": spec.dtype.name, "shape": [None, *spec.shape[1:]]}
            for name, spec in interface.inputs.items()
        },
        "outputs": list(interface.outputs),
        "labels": list(labels),
        "training": None,
        "metrics": {},
        "precision": precision,
    }


def _image_input(interface: Interface) -> dict[str, Any] | None:
    shape = interface.image_shape
    if shape is None:
        return None
    height, width, channels = shape
    return {
        "height": height,
        "width": width,
        "channels": channels,
        "resize": "antialiased bilinear",
        "alpha": "over white",
    }


def training_section(plan: Plan, history: History) -> dict[str, Any]:
    """What the model was trained on, and how."""
    values = plan.hyperparameters
    return {
        "data": plan.problem.data,
        "examples": len(plan.problem.train),
        "validation_examples": len(plan.problem.validation),
        "epochs": len(history.epochs),
        "best_epoch": history.best_epoch + 1,
        "seconds": round(history.seconds, 1),
        "run": history.run,
        "seed": values.seed,
        "batch_size": values.batch_size,
        "learning_rate": values.learning_rate,
        "augment": values.augment,
        "class_distribution": class_distribution(plan.problem.train, plan.problem.labels),
        "notes": list(plan.problem.notes),
    }


def class_distribution(examples: Examples, labels: tuple[str, ...]) -> list[float]:
    """The share of each class among the training examples, in the labels' order; empty without classes."""
    classes = examples.targets.get("scores")
    if not labels or classes is None:
        return []
    counts = np.bincount(classes.reshape(-1).astype(np.int64), minlength=len(labels))
    return [round(float(share), 6) for share in counts / counts.sum()]
