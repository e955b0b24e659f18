"""What the image API takes beside images, in a query or a body: `top_k`. All else is refused, not ignored."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from tests.support.http import grey_png

PATH = "/v1/models/digits:classify"

Sent = dict[str, Any]
"""What httpx sends as a body."""

BODY: Sent = {"content": grey_png(200), "headers": {"content-type": "image/png"}}
FORM: Sent = {"files": [("images", ("a.png", grey_png(200)))]}
JSON: Sent = {"json": {"images": [base64.b64encode(grey_png(200)).decode()]}}
EXAMPLES: Sent = {"json": {"examples": [{"x": [1.0]}]}}


def form(*fields: tuple[str, str]) -> Sent:
    """A form with a file, and with text fields before and behind it."""
    parts: list[tuple[str, Any]] = [(name, (None, text)) for name, text in fields]
    return {"files": [*parts[:1], *FORM["files"], *parts[1:]]}


@pytest.mark.parametrize("sent", [BODY, FORM, JSON], ids=("body", "form", "json"))
@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("topk=3", 'the query has a parameter "topk"; the only one allowed is top_k'),
        ("top_k=3&Top_K=3", 'the query has a parameter "Top_K"; the only one allowed is top_k'),
        ("=", 'the query has a parameter ""; the only one allowed is top_k'),
        (f"{'x' * 101}=1", f'the query has a parameter "{"x" * 100}"; the only one allowed is top_k'),
        ("top_k=3&top_k=3", "the query has top_k 2 times; give it once"),
        ("top_k=", "top_k is empty in the query; it is a whole number above 0"),
        ("top_k", "top_k is empty in the query; it is a whole number above 0"),
        ("top_k=many", 'top_k is "many" in the query; it is a whole number above 0'),
    ],
)
async def test_a_query_with_anything_but_one_top_k_is_refused(
    client: httpx.AsyncClient, sent: Sent, query: str, says: str
) -> None:
    answer = await client.post(f"{PATH}?{query}", **sent)
    assert (answer.status_code, answer.json()["detail"]) == (400, says)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:sluice:problem:invalid-input"


@pytest.mark.parametrize(
    "text",
    [
        *("1_0", " 3", "3 ", "3\n", "+3", "-1", "3.0", "\u0663", "\u00b2", "\U0001d7db"),
        pytest.param("9" * 5000, id="more digits than int() takes"),
    ],
)
async def test_top_k_is_ascii_digits_and_nothing_else(client: httpx.AsyncClient, text: str) -> None:
    for where, query, sent in (
        ("query", {"top_k": text}, BODY),
        ("multipart form", {}, form(("top_k", text))),
    ):
        answer = await client.post(PATH, params=query, **sent)
        says = f'top_k is "{text[:100]}" in the {where}; it is a whole number above 0'
        assert (answer.status_code, answer.json()["detail"]) == (400, says)


async def test_every_path_of_the_image_api_knows_its_queries(client: httpx.AsyncClient) -> None:
    for path in (
        "/v1/classify",
        "/v1/models/digits/versions/1:classify",
        "/v1/models/digits/labels/stable:classify",
    ):
        answer = await client.post(f"{path}?topk=3", **BODY)
        assert answer.status_code == 400, path
        assert 'parameter "topk"' in answer.json()["detail"]
        assert (await client.post(f"{path}?top_k=3", **BODY)).status_code == 200, path


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ([("topk", "3")], 'the multipart form has a text field "topk"; the only one allowed is top_k, and '),
        (
            [("top_k", "3"), ("images", "a.png")],
            'has a text field "images"; the only one allowed is top_k, and ',
        ),
        ([("top_k", "3"), ("top_k", "3")], "the multipart form has top_k 2 times; give it once"),
        ([("top_k", "")], "top_k is empty in the multipart form; it is a whole number above 0"),
        ([("top_k", "many")], 'top_k is "many" in the multipart form; it is a whole number above 0'),
        ([("top_k", "11")], 'top_k is 11; model "digits" has 10 classes, so it is 1 to 10'),
    ],
)
async def test_a_form_with_any_text_but_one_top_k_is_refused(
    client: httpx.AsyncClient, fields: list[tuple[str, str]], says: str
) -> None:
    answer = await client.post(PATH, **form(*fields))
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert says in answer.json()["detail"]


async def test_a_form_without_a_file_says_how_to_send_one(client: httpx.AsyncClient) -> None:
    for fields, says in (
        (
            {"images": (None, "a.png")},
            'has a text field "images"; the only one allowed is top_k, and each image is ',
        ),
        ({"top_k": (None, "3")}, "has no file; send each image as a file part"),
    ):
        answer = await client.post(PATH, files=fields)
        assert answer.status_code == 400
        assert says in answer.json()["detail"]


async def test_top_k_is_taken_from_the_query_or_the_body(client: httpx.AsyncClient) -> None:
    async def count(query: str, sent: Sent) -> int:
        answer = await client.post(PATH + query, **sent)
        assert answer.status_code == 200, answer.text
        (result,) = answer.json()["results"]
        return len(result["classes"])

    three = form(("top_k", "3"))
    json_three: Sent = {"json": {**JSON["json"], "top_k": 3}}
    for sent in (three, json_three):
        assert [await count(query, sent) for query in ("", "?", "?top_k=3")] == [3, 3, 3]
    assert await count("?top_k=2", {"json": {**JSON["json"], "top_k": None}}) == 2
    assert [await count("?top_k=2", sent) for sent in (BODY, FORM, JSON)] == [2, 2, 2]
    assert [await count("", sent) for sent in (BODY, FORM, JSON)] == [5, 5, 5]
    for sent, body in ((three, "the multipart form"), (json_three, "the JSON")):
        answer = await client.post(f"{PATH}?top_k=2", **sent)
        assert answer.status_code == 400
        says = f"top_k is 2 in the query and 3 in {body}; give it in one of them"
        assert answer.json()["detail"] == says


async def test_other_protocols_read_no_query(client: httpx.AsyncClient) -> None:
    for path in (PATH, "/v1/models/digits/versions/1:classify"):
        answer = await client.post(f"{path}?topk=3&top_k=many&top_k=", **EXAMPLES)
        assert answer.status_code == 200, answer.text
        assert answer.json()["results"]
    pixels = {"instances": [[[[0]] * 8] * 8]}
    answer = await client.post("/v1/models/digits:predict?topk=3", json=pixels)
    assert answer.status_code == 200, answer.text
    assert (await client.get("/v2/models/digits?topk=3")).status_code == 200
