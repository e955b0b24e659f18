"""Every recipe, trained briefly: what the tests publish, and with which options."""

from pathlib import Path
from typing import Any

from rich.console import Console

RESNET: dict[str, Any] = {}  # as the user gets it, by `trained_digits`: its accuracy is asserted
BRIEF: dict[str, Any] = {"epochs": 2, "examples": 400}

OPTIONS: dict[str, dict[str, Any]] = {
    "sequential": BRIEF,
    "functional": BRIEF,
    "branches": BRIEF,
    "siamese": {"epochs": 12},
    "huber": {"epochs": 4},
    "lambda-abs": BRIEF,
    "lambda-relu": BRIEF,
    "simple-dense": {},
    "simple-dense-images": BRIEF | {"data": "digits"},
    "wide-deep": {"epochs": 3},
    "wide-deep-class": {"epochs": 3},
    "residual": BRIEF,
    "resnet": RESNET,
    "vgg": BRIEF,
}


def train_once(name: str, models: Path) -> None:
    """Trains and publishes `models/NAME/1`."""
    from training import job
    from training.config import Options

    recipe = name.removesuffix("-images")
    with Path("/dev/null").open("w") as nowhere:
        job.train(recipe, Options(out=models, name=name, **OPTIONS[name]), Console(file=nowhere))
