"""Scores into classes."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from serving import protos, tensors
from serving.errors import Internal
from serving.prediction import ClassScore, ImageResult, Prediction, Ranking
from serving.rpc.classification import _to_bytes, _to_response
from serving.scores import best, best_of_each, labels_of, read_scores, with_numbers
from tests.support.turns import somebody_else

LABELS = tuple(f"class-{index}" for index in range(1_000))


async def test_others_have_their_turn_while_the_classes_of_many_images_are_named() -> None:
    """256 images of which each gets all of a thousand classes took the event loop more than a second."""
    rows = list(np.random.default_rng(0).random([64, 1_000], np.float32))
    async with somebody_else() as turns:
        named = await best_of_each(rows, LABELS, 1_000)
    assert turns.taken > 20
    for row, classes in zip(rows, named, strict=True):
        assert not isinstance(classes, Internal)
        assert [each.index for each in classes] == np.argsort(-row, kind="stable").tolist()
        assert classes[0] == ClassScore(LABELS[int(row.argmax())], int(row.argmax()), float(row.max()))


async def test_a_large_answer_is_not_an_object_for_each_class() -> None:
    """With an object per class, freeing 256 images' 1,000 classes each took 20 ms without a pause."""
    rows = list(np.random.default_rng(0).random([8, 1_000], np.float32))
    named = await best_of_each(rows, LABELS, 1_000)
    assert sum(len(each) for each in named if not isinstance(each, Internal)) == 8_000
    assert sum(type(each) is ClassScore for each in gc.get_objects()) < 1_000


def test_many_classes_are_a_sequence_as_few_are() -> None:
    scores = np.array([0.25, 0.5, 0.0625, 0.1875], np.float32)
    few = best(scores, LABELS, 4)
    many = Ranking(LABELS, np.array([1, 0, 3, 2]), scores[[1, 0, 3, 2]])
    assert tuple(many) == tuple(few)
    assert tuple(many[place] for place in range(-4, 4)) == (*few, *few)
    assert tuple(many[1:3]) == tuple(few[1:3])
    assert few[2] in many
    with pytest.raises(IndexError):
        many[4]


@pytest.mark.parametrize("classes", [10, 1_000])
def test_of_equals_the_lower_index_comes_first(classes: int) -> None:
    scores = np.zeros(classes, np.float32)
    scores[[3, 7]] = 0.5
    assert [each.index for each in best(scores, LABELS, 4)] == [3, 7, 0, 1]
    assert len(best(scores, LABELS, classes)) == classes
    scores[5] = np.inf
    with pytest.raises(Internal, match="not a finite number"):
        best(scores, LABELS, 4)


def test_a_large_response_of_grpc_is_what_its_parts_are() -> None:
    results = (
        ImageResult(best(np.arange(100, dtype=np.float32), LABELS, 100), prediction_id="an id"),
        ImageResult(error=Internal("no numbers")),
    )
    prediction = Prediction("digits", 7, results)
    written = protos.ClassifyResponse.FromString(_to_bytes(prediction, "mine"))
    assert written == _to_response(prediction, "mine")


async def test_one_image_is_named_in_one_turn() -> None:
    """A turn more for each request would cost as much as the rest of its way through the loop."""
    naming = best_of_each([np.arange(1_000, dtype=np.float32)], LABELS, 5)
    named = None
    try:
        naming.send(None)
    except StopIteration as ended:
        named = ended.value
    assert named is not None
    assert not isinstance(named[0], Internal)
    assert [each.index for each in named[0]] == [999, 998, 997, 996, 995]


def answer_of(**outputs: np.ndarray) -> Any:
    response = protos.PredictResponse()
    for name, array in outputs.items():
        response.outputs[name].CopyFrom(tensors.to_proto(array))
    return response


def test_what_a_replica_says_is_read_or_told_to_be_no_scores() -> None:
    scores = np.array([[0.25, 0.75], [np.nan, 1.0]], np.float32)
    np.testing.assert_array_equal(read_scores(answer_of(scores=scores), "scores", (2, 2)), scores)
    cut = answer_of(scores=scores)
    cut.outputs["scores"].float_val[:] = []
    cut.outputs["scores"].tensor_content = scores.tobytes()[:-1]
    for response, says in (
        (answer_of(other=scores), 'has no output "scores"'),
        (answer_of(scores=scores[:1]), r"is float32 \[1, 2\]; float32 \[2, 2\] was due"),
        (answer_of(scores=scores.astype(str).astype(object)), r"is string \[2, 2\]; float32"),
        (answer_of(scores=scores.astype(np.float64)), r"is float64 \[2, 2\]; float32"),
        (cut, 'output "scores" is malformed'),
    ):
        with pytest.raises(Internal, match=says) as caught:
            read_scores(response, "scores", (2, 2))
        assert caught.value.stage == "backend"


def test_rows_without_numbers_are_told_from_those_whose_sum_is_beyond_float32() -> None:
    large = np.finfo(np.float32).max
    rows = np.array([[large, large], [0.5, np.inf], [np.nan, 0.5], [0.25, 0.75]], np.float32)
    with np.errstate(over="ignore"):
        assert with_numbers(rows).tolist() == [True, False, False, True]
    assert with_numbers(rows[3:]).tolist() == [True]


def test_a_row_without_numbers_has_no_label() -> None:
    rows = [np.array([0.25, 0.75], np.float32), np.array([0.5, np.nan], np.float32)]
    assert labels_of(rows[:1], LABELS) == ["class-1"]
    with pytest.raises(Internal, match="not a finite number"):
        labels_of(rows, LABELS)
