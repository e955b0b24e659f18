"""How good a model is, from true classes and predicted probabilities. NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SUM_TOLERANCE = 0.01  # what half precision may make of a sum of probabilities
_CONFUSION_LIMIT = 50  # classes: beyond that the matrix alone would not fit into the card


def classification(truth: NDArray[Any], scores: NDArray[Any], labels: tuple[str, ...]) -> dict[str, Any]:
    """Accuracy, precision and recall of each class, confusion, calibration; ready for JSON.

    Only probabilities can be calibrated: `ece` is None for other scores, such as logits.

    Args:
        truth: int [N].
        scores: float [N, K], the higher the likelier.
        labels: K names.
    """
    predicted = scores.argmax(axis=1)
    matrix = confusion_matrix(truth, predicted, len(labels))
    metrics: dict[str, Any] = {
        "held_out_examples": len(truth),
        "held_out_accuracy": round(float((predicted == truth).mean()), 6),
        "ece": round(expected_calibration_error(truth, scores), 6) if are_probabilities(scores) else None,
        "per_class": per_class(matrix, labels),
    }
    if len(labels) <= _CONFUSION_LIMIT:
        metrics["confusion"] = matrix.tolist()
    return metrics


def confusion_matrix(truth: NDArray[Any], predicted: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """How often class i was predicted as class j: int64 [K, K], true classes in rows."""
    flat = truth.astype(np.int64) * classes + predicted.astype(np.int64)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def per_class(matrix: NDArray[np.int64], labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """Precision, recall and support of each class; None where there is nothing to divide by."""
    rows = []
    for index, label in enumerate(labels):
        hits, support, claimed = matrix[index, index], matrix[index].sum(), matrix[:, index].sum()
        rows.append(
            {
                "label": label,
                "precision": round(float(hits / claimed), 6) if claimed else None,
                "recall": round(float(hits / support), 6) if support else None,
                "support": int(support),
            }
        )
    return rows


def are_probabilities(scores: NDArray[Any]) -> bool:
    """Whether the scores [N, K] of each example are never below 0 and add up to 1."""
    return bool(scores.min() >= 0 and np.abs(scores.sum(axis=1) - 1).max() <= _SUM_TOLERANCE)


def expected_calibration_error(truth: NDArray[Any], scores: NDArray[Any], bins: int = 15) -> float:
    """The mean gap between confidence and accuracy, over equally wide bins of confidence.

    From Guo et al., "On Calibration of Modern Neural Networks" (2017), equation 3.
    """
    confidence = scores.max(axis=1)
    correct = scores.argmax(axis=1) == truth
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(float(correct[bin_of == index].mean()) - float(confidence[bin_of == index].mean()))
        * float((bin_of == index).mean())
        for index in np.unique(bin_of)
    ]
    return float(sum(gaps))


def regression(truth: NDArray[Any], predicted: NDArray[Any]) -> dict[str, Any]:
    """Mean absolute and root mean square error, and the share of variance explained (R2)."""
    errors = predicted.reshape(-1).astype(np.float64) - truth.reshape(-1)
    variance = float(np.square(truth - truth.mean()).mean())
    mean_square = float(np.square(errors).mean())
    return {
        "held_out_mae": round(float(np.abs(errors).mean()), 6),
        "held_out_rmse": round(mean_square**0.5, 6),
        "held_out_r2": round(1 - mean_square / variance, 6) if variance else None,
    }


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> dict[str, Any]:
    """Whether two models differ, from which of the same examples each got right.

    McNemar's exact test (1947): of the examples that only one got right, did each get about half? `p_value`
    is two-sided.
    """
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p_value = binomtest(only_first, discordant, 0.5).pvalue if discordant else 1.0
    return {
        "examples": len(first),
        "accuracy": [round(float(first.mean()), 6), round(float(second.mean()), 6)],
        "only_first_right": only_first,
        "only_second_right": only_second,
        "p_value": float(p_value),
    }
