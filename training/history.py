"""What happened in a training run, epoch by epoch, and when it should end."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, field


@dataclass
class History:
    """`epochs[i]` holds the means of epoch i; those of validation have the prefix `val_`.

    `run` identifies a run, and stays the same when it is resumed.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    best_loss: float = math.inf
    seconds: float = 0.0
    run: str = field(default_factory=lambda: uuid.uuid4().hex)

    def add(self, metrics: dict[str, float]) -> bool:
        """Notes an epoch, and says whether it is the best so far."""
        self.epochs.append(metrics)
        better = metrics["val_loss"] < self.best_loss
        if better:
            self.best_epoch, self.best_loss = len(self.epochs) - 1, metrics["val_loss"]
        return better

    def should_stop(self, patience: int) -> bool:
        """Whether `patience` epochs have gone by without a better one."""
        return len(self.epochs) - 1 - self.best_epoch >= patience
