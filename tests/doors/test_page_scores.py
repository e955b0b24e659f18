"""The page at `/`, in a browser: scores as they are, whether or not they are probabilities."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from serving.commands.serve import SAMPLE
from tests.observability import browser as browsers
from tests.support.fake_replica import CLASSES, FakeReplica, running
from tests.support.gateways import gateway_over

pytestmark = pytest.mark.skipif(browsers.CHROMIUM is None, reason="chromium is not installed: make test-deps")


@dataclass
class Scoring(FakeReplica):
    """Gives every image the same scores: these, and the last of them for all other classes."""

    scores: Sequence[float] = ()

    async def predict(self, request: Any) -> Any:
        """The scores, or labels and a card."""
        if request.model_spec.signature_name == "describe":
            return self._describe(request)
        count = request.inputs["images"].tensor_shape.dim[0].size
        row = [*self.scores, *[self.scores[-1]] * (CLASSES - len(self.scores))]
        return self._answer(request, scores=np.array([row] * count, np.float32))


def read(url: str) -> tuple[str, list[str], list[float]]:
    """What the page says of a picture: the verdict's second line, each score, and how long each bar is."""
    with browsers.chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(browsers.TIMEOUT_MS)
        page.goto(url)
        page.wait_for_selector("#models table")
        page.set_input_files("#file", SAMPLE)
        browsers.answer(page)
        lengths = page.eval_on_selector_all("ol.classes .bar > span", "all => all.map(e => e.style.width)")
        return (
            page.inner_text("#verdict .quiet"),
            page.locator("ol.classes .number").all_inner_texts(),
            [round(float(length.rstrip("%")), 1) for length in lengths],
        )


@pytest.mark.parametrize(
    ("scores", "verdict", "numbers", "lengths"),
    [
        ([0.5, 0.25, 0.03125], "50.0 %, says digits version 1", ["50.0 %", "25.0 %", "3.1 %"], [50, 25, 3.1]),
        ([12.75, 7.0, -3.5], "score 12.75, says digits version 1", ["12.75", "7", "-3.5"], [100, 54.9, 0]),
        ([-1.5, -12345.678], "score -1.5, says digits version 1", ["-1.5", "-12350"], [0, 0]),
    ],
    ids=("probabilities", "logits", "below 0"),
)
async def test_scores_that_are_no_probabilities_are_no_percentages(
    scores: list[float], verdict: str, numbers: list[str], lengths: list[float]
) -> None:
    async with running(Scoring(scores=scores)) as replica, gateway_over(replica) as (up, _):
        said, shown, widths = await asyncio.to_thread(read, up.http_url)
    assert said == verdict
    assert (shown[: len(numbers)], widths[: len(lengths)]) == (numbers, lengths)
