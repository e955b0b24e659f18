"""Debian's Chromium, driven by Playwright; no browser of Playwright's own is downloaded."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import REPOSITORY

CHROMIUM = shutil.which("chromium")
ARTEFACTS = Path(os.environ.get("SLUICE_TEST_ARTEFACTS", REPOSITORY / "build" / "artefacts"))
TIMEOUT_MS = 120_000
PHONE = {"width": 390, "height": 844}
# To which WCAG 2.1 wants pages to fit (criterion 1.4.10, Reflow).
NARROW = {"width": 320, "height": 700}

Point = tuple[float, float]
# Digits as strokes in a unit square, as a person might draw them.
ONE: Sequence[Point] = [(0.5, 0.12), (0.5, 0.88)]
SEVEN: Sequence[Point] = [(0.28, 0.2), (0.72, 0.2), (0.44, 0.86)]
ZERO: Sequence[Point] = [
    (0.5 + 0.22 * math.sin(turn / 12 * math.pi), 0.5 - 0.33 * math.cos(turn / 12 * math.pi))
    for turn in range(25)
]


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        try:
            yield browser
        finally:
            browser.close()


def opened(browser: Browser, url: str, key: str) -> Page:
    """The page, with its key entered and its models there."""
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(url)
    page.fill("#key", key)
    page.click("#key-form button")
    page.wait_for_selector("#models table")
    return page


def draw(page: Page, stroke: Sequence[Point]) -> str:
    """Draw one stroke with the pointer; the label that comes back."""
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
    with page.expect_response("**:classify"):
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=6)
        page.mouse.up()
    return answer(page)


def answer(page: Page) -> str:
    """The label that the page shows, once it has the answer."""
    page.wait_for_selector("#answer:not([aria-busy]) .first")
    return page.inner_text("#answer .first")


def keep(page: Page, name: str) -> Path:
    """A picture of the whole page among the tests' artefacts."""
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    path = ARTEFACTS / name
    page.screenshot(path=path, full_page=True)
    return path
