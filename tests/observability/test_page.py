"""The page at `/` in a real browser, over a live gateway, model server and rollout."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Page, Route

from serving.commands.serve import SAMPLE
from serving.page.assets import ASSETS
from tests.observability import browser as browsers
from tests.observability.browser import NARROW, ONE, PHONE, SEVEN, ZERO, answer, draw, keep, opened
from tests.observability.scene import Scene, until

pytestmark = pytest.mark.skipif(browsers.CHROMIUM is None, reason="chromium is not installed: make test-deps")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.chromium() as made:
        yield made


@pytest.fixture
def page(browser: Browser, scene: Scene) -> Iterator[Page]:
    """The page with an admin's key. Nothing may go wrong in its console, and no other host may be asked."""
    made = opened(browser, scene.http_url, scene.key)
    complaints: list[str] = []
    strangers: list[str] = []
    made.on("pageerror", lambda error: complaints.append(str(error)))
    made.on(
        "console",
        lambda said: complaints.append(said.text) if "Content Security Policy" in said.text else None,
    )
    made.on(
        "request",
        lambda asked: (
            None
            if asked.url.startswith((scene.http_url, "blob:" + scene.http_url))
            else strangers.append(asked.url)
        ),
    )
    yield made
    made.unroute_all(behavior="ignoreErrors")  # a handler at work as the page closes fails the next test
    made.close()
    assert complaints == []
    assert strangers == []


def serious(page: Page) -> list[str]:
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{each['id']}: {node['html']}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


DROP = """
([text]) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "seven.png", {type: "image/png"}));
  document.querySelector("#choose").dispatchEvent(
    new EVENT("TYPE", {DATA: transfer, bubbles: true, cancelable: true}));
}
"""


@pytest.mark.parametrize(
    ("event", "kind", "data"),
    [("DragEvent", "drop", "dataTransfer"), ("ClipboardEvent", "paste", "clipboardData")],
)
def test_a_picture_dropped_or_pasted_is_named(page: Page, event: str, kind: str, data: str) -> None:
    script = DROP.replace("EVENT", event).replace("TYPE", kind).replace("DATA", data)
    page.evaluate(script, [base64.b64encode(SAMPLE.read_bytes()).decode()])
    assert answer(page) == "7"
    assert page.inner_text("#by-version") in ("1", "2")
    assert page.locator("#answer [role=status] :is(ol, .legend)").count() == 0, (
        "a screen reader says the verdict alone"
    )
    stages = page.inner_text("#answer .legend")
    assert all(stage in stages for stage in ("admission", "read", "decode", "queue", "backend"))
    assert page.locator("ol.classes li").count() == 5
    widths = page.eval_on_selector_all("ol.classes .bar > span", "all => all.map(e => e.offsetWidth)")
    assert widths[0] > 5 * max(widths[1:])


def test_a_chosen_file_is_named_and_screenshots_are_kept(page: Page) -> None:
    page.set_input_files("#file", SAMPLE)
    assert answer(page) == "7"
    assert serious(page) == []
    keep(page, "page-light.png")
    page.emulate_media(color_scheme="dark")
    assert serious(page) == []
    keep(page, "page-dark.png")
    for size in (NARROW, PHONE):
        page.set_viewport_size(size)  # type: ignore[arg-type]  # a plain dict has these keys
        assert serious(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        canvas = page.locator("#canvas").bounding_box()
        assert canvas is not None
        assert canvas["width"] == canvas["height"], "a digit is drawn as it looks"
    keep(page, "page-phone.png")


@pytest.mark.parametrize(("digit", "stroke"), [("0", ZERO), ("1", ONE), ("7", SEVEN)])
def test_a_drawn_digit_is_read(page: Page, digit: str, stroke: list[browsers.Point]) -> None:
    assert draw(page, stroke) == digit


def test_a_digit_drawn_by_keyboard_is_read(page: Page) -> None:
    canvas = page.locator("#canvas")
    canvas.focus()
    for _ in range(10):
        canvas.press("ArrowUp")
    canvas.press(" ")
    for _ in range(20):
        canvas.press("ArrowDown")
    with page.expect_response("**:classify"):
        canvas.press(" ")
    assert answer(page) == "1"


def test_a_picture_is_known_by_its_content(page: Page) -> None:
    page.set_input_files("#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": SAMPLE.read_bytes()})
    assert answer(page) == "7"


def drop(page: Page, *files: Path, items: Sequence[dict[str, str]] = ()) -> None:
    """Drag files, or what another page gives, to the page and let go."""
    box = page.locator("#choose").bounding_box()
    assert box is not None
    dragged = {"items": [*items], "files": [str(each) for each in files], "dragOperationsMask": 1}
    devtools = page.context.new_cdp_session(page)
    for step in ("dragEnter", "dragOver", "drop"):
        place = {"x": box["x"] + 20, "y": box["y"] + 20}
        devtools.send("Input.dispatchDragEvent", {"type": step, "data": dragged, **place})


def test_an_empty_file_is_told_as_that(page: Page) -> None:
    """Whoever dropped one has sent no request, of which the gateway says that it has no body."""
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b""})
    page.wait_for_selector("#answer:not([aria-busy]) .error")
    assert page.inner_text("#answer .error") == "This file is empty."


def test_a_dropped_folder_is_told_from_a_gateway_that_is_away(page: Page, tmp_path: Path) -> None:
    drop(page, tmp_path)
    page.wait_for_selector("#answer .error:has-text('Is it a folder')")


def test_what_is_not_one_picture_is_told_rather_than_passed_over(page: Page) -> None:
    page.set_input_files("#file", SAMPLE)
    assert answer(page) == "7"
    drop(page, SAMPLE, SAMPLE)
    page.wait_for_selector("#answer .error:text-is('These are 2 files; one picture at a time.')")
    assert not page.is_visible("#preview"), "it is not what the text is about"
    drop(page, items=[{"mimeType": "text/uri-list", "data": "https://example.org/seven.png"}])
    page.wait_for_selector("#answer .error:has-text('No file came with that')")
    drop(page, SAMPLE)
    assert answer(page) == "7"


def test_another_model_is_asked_about_the_same_picture(page: Page) -> None:
    asked: list[bytes | None] = []

    def with_another(route: Route) -> None:
        answered = route.fetch()
        state = answered.json()
        (known,) = state["models"]
        lost = {**known, "name": "lost", "input": None, "serving": None, "versions": []}
        route.fulfill(response=answered, json=state | {"models": [known, {**known, "name": "other"}, lost]})

    def answer_eight(route: Route) -> None:
        asked.append(route.request.post_data_buffer)
        classes = [{"label": "eight", "index": 8, "score": 0.75}]
        route.fulfill(json={"model": "other", "version": 5, "results": [{"classes": classes}]})

    page.route("**/page/state", with_another)
    page.route("**/v1/models/other:classify", answer_eight)
    page.wait_for_selector("#model-choice:not([hidden])")
    page.select_option("#model", "other")
    assert asked == [], "there is no picture yet"
    page.select_option("#model", "digits")
    page.set_input_files("#file", SAMPLE)
    assert answer(page) == "7"
    page.select_option("#model", "other")
    page.wait_for_selector("#answer .first:text-is('eight')")
    assert asked == [SAMPLE.read_bytes()]
    assert "lost no version available" in page.inner_text("#models")
    assert "lost: no version available" in page.inner_text("#health")


def test_while_an_answer_is_waited_for_the_one_before_is_not_taken_for_it(page: Page) -> None:
    page.set_input_files("#file", SAMPLE)
    assert answer(page) == "7"
    page.route("**/v1/models/digits:classify", answer_nothing)
    page.set_input_files("#file", SAMPLE)
    opacity = "getComputedStyle(document.querySelector('#answer .first').parentElement).opacity"
    until(lambda: float(page.evaluate(opacity)) < 0.5, "it is dimmed")


def test_what_is_no_picture_is_refused_in_words_and_listed(page: Page) -> None:
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"nonsense"})
    page.wait_for_selector("#answer .error")
    assert "image" in page.inner_text("#answer .error")
    page.wait_for_selector("#refusals li:first-child strong:text-is('bad-image')")


def test_a_rollout_is_watched_and_promoted_by_an_admin(page: Page, scene: Scene) -> None:
    until(lambda: scene.rollout()["state"]["phase"] in ("canary", "promoted"), "the canary begins")
    page.wait_for_selector(".rollout")
    assert "digits 1 → 2" in page.inner_text(".rollout h3")
    assert page.locator("svg.curve polyline").count() >= 4
    # The gateway kept the evidence since the copies began, while no page was open.
    drawn = page.get_attribute("svg.curve polyline", "points") or ""
    assert len(drawn.split()) >= 5
    assert "40 %" in page.inner_text(".rollout")
    keep(page, "page-rollout.png")
    assert serious(page) == []
    page.click("text=Pause")
    page.wait_for_selector("text=Resume")
    page.click("text=Resume")
    page.wait_for_selector(".rollout[data-phase=canary]")
    page.click("text=Promote now")
    page.wait_for_selector(".rollout[data-phase=promoted]")
    assert page.locator(".rollout button").count() == 0
    page.set_input_files("#file", SAMPLE)
    assert answer(page) == "7"
    assert page.inner_text("#by-version") == "2"


def test_without_a_key_the_page_asks_for_one(browser: Browser, scene: Scene) -> None:
    page = browser.new_page()
    page.goto(scene.http_url)
    page.wait_for_selector("#key-box[open]")
    assert "requires a key" in page.inner_text("#health")
    assert serious(page) == []
    page.set_input_files("#file", SAMPLE)
    page.wait_for_selector("#answer .error:text-is('This gateway requires a key.')")
    page.locator("#key").press("Enter")
    assert page.evaluate("document.activeElement.closest('#key-box') !== null"), "a keyboard's place is kept"
    page.close()


def looks(page: Page, count: int) -> None:
    """Wait until the page has looked at the state so many times more."""
    for _ in range(count):
        with page.expect_response("**/page/state"):
            pass


def test_the_key_box_stays_closed_for_who_closes_it_and_a_wrong_key_is_told(
    browser: Browser, scene: Scene
) -> None:
    page = browser.new_page()
    page.goto(scene.http_url)
    page.wait_for_selector("#key-box[open]")
    page.click("#key-box summary")
    looks(page, 3)
    assert page.get_attribute("#key-box", "open") is None
    for wrong in ("sluice_00000000_wrong", "“sluice”"):
        page.click("#key-box summary")
        page.fill("#key", wrong)
        page.click("#key-form button")
        page.wait_for_selector("#key-box[open]")
        assert page.inner_text("#health") == "The gateway does not accept this key."
        page.click("#key-box summary")
    page.close()


def test_what_came_of_a_command_stays_while_the_rollout_goes_on(page: Page) -> None:
    seconds = itertools.count()

    def going_on(route: Route) -> None:
        state = route.fetch().json()
        state["rollouts"][0] |= {"phase": "canary", "finished": False, "reason": f"since {next(seconds)} s"}
        route.fulfill(json=state)

    refusal = {"type": "urn:sluice:problem:conflict", "detail": "somebody else moved it"}
    page.route("**/page/state", going_on)
    page.route("**/v1/rollouts/digits/pause", lambda route: route.fulfill(status=409, json=refusal))
    page.click("text=Pause")
    page.wait_for_selector("#told.error")
    page.evaluate("document.querySelector('.rollout').dataset.old = 'yes'")
    page.wait_for_selector(".rollout:not([data-old])")  # drawn anew
    assert page.inner_text("#told") == "digits: somebody else moved it"
    assert serious(page) == []


@pytest.mark.parametrize(
    ("answer_of", "says"),
    [
        ({"status": 200, "content_type": "text/html", "body": "<b>Log in</b>"}, "is not a Sluice gateway"),
        ({"status": 502, "content_type": "text/html", "body": "<b>Bad</b>"}, "The gateway answered 502."),
    ],
)
def test_what_a_proxy_answers_is_told_as_that(page: Page, answer_of: dict[str, Any], says: str) -> None:
    page.route("**/page/state", lambda route: route.fulfill(**answer_of))
    page.wait_for_selector(f"#health:has-text('{says}')")
    page.unroute("**/page/state")
    page.wait_for_selector("#health:has-text('requests in flight')")


def answer_nothing(_route: Route) -> None:
    """Leave a request as it is."""


def test_a_gateway_that_is_silent_is_told_of(page: Page) -> None:
    page.route("**/page/state", answer_nothing)
    page.wait_for_selector("#health:text-is('The gateway does not answer.')")
    page.unroute("**/page/state")
    page.wait_for_selector("#health:has-text('requests in flight')")


def test_rollouts_that_cannot_be_read_hide_nothing_else(page: Page) -> None:
    def without_rollouts(route: Route) -> None:
        answered = route.fetch()
        gap = "the API server <b>is</b> away"
        route.fulfill(response=answered, json=answered.json() | {"rollouts": [], "rollouts_gap": gap})

    page.route("**/page/state", without_rollouts)
    page.wait_for_selector("#rollouts .error")
    assert page.inner_text("#rollouts") == "The rollouts cannot be read: the API server <b>is</b> away"
    assert page.is_visible("#models table")


def test_files_come_with_a_strict_policy_and_from_the_cache(scene: Scene) -> None:
    for path in ("/", *(f"/page/{name}" for name in ASSETS)):
        got = httpx.get(scene.http_url + path, timeout=60)
        assert got.status_code == 200
        policy = got.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        again = httpx.get(scene.http_url + path, headers={"if-none-match": got.headers["etag"]}, timeout=60)
        assert (again.status_code, again.content) == (304, b"")
    assert sum(len(asset.content) for asset in ASSETS.values()) < 60_000
    assert httpx.get(f"{scene.http_url}/page/state", timeout=60).status_code == 401
    assert httpx.get(f"{scene.http_url}/page/../settings.py", timeout=60).status_code == 404
