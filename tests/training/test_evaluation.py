"""Metrics by hand."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from training import curves, evaluation

LABELS = ("a", "b", "c")
TRUTH = np.array([0, 0, 0, 1, 1, 2])
SCORES = np.array(
    [
        [0.9, 0.1, 0.0],
        [0.8, 0.2, 0.0],
        [0.3, 0.7, 0.0],  # taken for b
        [0.1, 0.9, 0.0],
        [0.2, 0.8, 0.0],
        [0.6, 0.4, 0.0],  # taken for a
    ]
)


def test_classification_by_hand() -> None:
    metrics = evaluation.classification(TRUTH, SCORES, LABELS)
    assert metrics["held_out_examples"] == 6
    assert metrics["held_out_accuracy"] == pytest.approx(4 / 6, abs=1e-6)
    assert metrics["confusion"] == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert metrics["per_class"] == [
        {"label": "a", "precision": 0.666667, "recall": 0.666667, "support": 3},
        {"label": "b", "precision": 0.666667, "recall": 1.0, "support": 2},
        {"label": "c", "precision": None, "recall": 0.0, "support": 1},
    ]


def test_calibration_by_hand() -> None:
    # bins of a fifteenth: 0.9 twice (both right), 0.8 twice (right), 0.7 and 0.6 (wrong)
    expected = (2 * 0.1 + 2 * 0.2 + 0.7 + 0.6) / 6
    assert evaluation.expected_calibration_error(TRUTH, SCORES) == pytest.approx(expected)
    perfect = np.eye(3)[TRUTH]
    assert evaluation.expected_calibration_error(TRUTH, perfect) == 0.0


def test_the_last_of_fifteen_bins_holds_what_is_certain() -> None:
    """0.935 is past 14/15, and so in one bin with 1.0; the one is right and the other wrong."""
    scores = np.array([[0.935, 0.065], [1.0, 0.0]])
    error = evaluation.expected_calibration_error(np.array([0, 1]), scores)
    assert error == pytest.approx((0.935 + 1.0) / 2 - 0.5)


def test_calibration_finds_what_is_calibrated() -> None:
    random = np.random.default_rng(0)
    confidence = random.uniform(0.5, 1.0, 40_000)
    truth = (random.uniform(size=40_000) > confidence).astype(int)  # right as often as it says
    scores = np.stack([confidence, 1 - confidence], axis=1)
    assert evaluation.expected_calibration_error(truth, scores) < 0.01
    sure = np.stack([confidence**0.2, 1 - confidence**0.2], axis=1)
    assert evaluation.expected_calibration_error(truth, sure) > 0.1


def test_only_probabilities_have_a_calibration() -> None:
    for scores in (np.log(SCORES + 0.01), SCORES + 0.1, SCORES - SCORES[:, :1]):
        metrics = evaluation.classification(TRUTH, scores, LABELS)
        assert metrics["ece"] is None
        assert len(metrics["per_class"]) == 3
    half = SCORES.astype(np.float16).astype(np.float32) * np.float32(1.005)  # as half precision rounds
    assert evaluation.classification(TRUTH, half, LABELS)["ece"] is not None


def test_one_example_that_does_not_add_up_to_one_is_enough() -> None:
    scores = np.concatenate([np.eye(3)] * 100 + [[[0.5, 0.0, 0.0]]])
    assert not evaluation.are_probabilities(scores)


def test_classes_may_come_in_few_bits() -> None:
    truth, predicted = np.array([200, 200], np.uint8), np.array([3, 200], np.uint8)
    matrix = evaluation.confusion_matrix(truth, predicted, 201)
    assert (matrix[200, 3], matrix[200, 200], matrix.sum()) == (1, 1, 2)


@pytest.mark.parametrize(("classes", "drawn"), [(50, True), (51, False)])
def test_many_classes_leave_the_matrix_out(classes: int, drawn: bool) -> None:
    labels = tuple(str(index) for index in range(classes))
    metrics = evaluation.classification(np.arange(classes), np.eye(classes), labels)
    assert metrics["held_out_accuracy"] == 1.0
    assert ("confusion" in metrics) == drawn


def test_regression_by_hand() -> None:
    metrics = evaluation.regression(np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [2.5], [2.0]]))
    assert metrics == {
        "held_out_mae": 0.5,
        "held_out_rmse": round((1.25 / 3) ** 0.5, 6),
        "held_out_r2": round(1 - 1.25 / 2, 6),
    }


def test_nothing_is_explained_where_nothing_varies() -> None:
    metrics = evaluation.regression(np.array([2.0, 2.0]), np.array([1.0, 3.0]))
    assert metrics == {"held_out_mae": 1.0, "held_out_rmse": 1.0, "held_out_r2": None}


def test_large_errors_of_half_precision_stay_numbers() -> None:
    truth, predicted = np.array([0.0, 1.0], np.float16), np.array([[600.0], [1.0]], np.float16)
    assert evaluation.regression(truth, predicted)["held_out_rmse"] == pytest.approx(600 / 2**0.5)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    first = np.array([True] * 50 + [True] * 9 + [False] * 2 + [False] * 5)
    second = np.array([True] * 50 + [False] * 9 + [True] * 2 + [False] * 5)
    result = evaluation.mcnemar(first, second)
    assert (result["only_first_right"], result["only_second_right"], result["examples"]) == (9, 2, 66)
    # by hand: 2 * (C(11,0) + C(11,1) + C(11,2)) / 2^11
    assert result["p_value"] == pytest.approx(2 * (1 + 11 + 55) / 2**11)
    assert result["p_value"] == pytest.approx(binomtest(9, 11).pvalue)
    assert evaluation.mcnemar(first, first)["p_value"] == 1.0


def test_drawings_are_png(tmp_path: Path) -> None:
    metrics = evaluation.classification(TRUTH, SCORES, ("a", "$no { math$", "c"))
    curves.draw_confusion(tmp_path / "confusion.txt", "t", metrics)
    epochs = [{"loss": 1.0, "val_loss": 2.0, "accuracy": 0.5, "val_accuracy": 0.4}]
    curves.draw_curves(tmp_path / "curves.png", "t", epochs)
    for name in ("confusion.txt", "curves.png"):
        assert (tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
