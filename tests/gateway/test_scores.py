"""Scores into classes."""

from __future__ import annotations

import numpy as np

from serving.prediction import ClassScore
from serving.scores import best_of_each
from tests.support.turns import somebody_else

LABELS = tuple(f"class-{index}" for index in range(1_000))


async def test_others_have_their_turn_while_the_classes_of_many_images_are_named() -> None:
    """256 images of which each gets all of a thousand classes took the event loop more than a second."""
    rows = list(np.random.default_rng(0).random([64, 1_000], np.float32))
    async with somebody_else() as turns:
        named = await best_of_each(rows, LABELS, 1_000)
    assert turns.taken > 20
    for row, classes in zip(rows, named, strict=True):
        assert isinstance(classes, tuple)
        assert [each.index for each in classes] == np.argsort(-row, kind="stable").tolist()
        assert classes[0] == ClassScore(LABELS[int(row.argmax())], int(row.argmax()), float(row.max()))


async def test_one_image_is_named_in_one_turn() -> None:
    """A turn more for each request would cost as much as the rest of its way through the loop."""
    naming = best_of_each([np.arange(1_000, dtype=np.float32)], LABELS, 5)
    named = None
    try:
        naming.send(None)
    except StopIteration as ended:
        named = ended.value
    assert named is not None
    assert isinstance(named[0], tuple)
    assert [each.index for each in named[0]] == [999, 998, 997, 996, 995]
