"""What the Python client refuses before it sends anything."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from serving.client import AsyncClient, AsyncGrpcClient, Client, GrpcClient, Retries
from serving.errors import (
    InvalidInput,
)
from tests.support.pictures import gradient

ENCODE = r'; encode the pixels first, as Pillow does by save\(file, "PNG"\)'


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://localhost", "http://", "http://localhost:http", ""])
def test_what_is_no_address_is_said_at_once(url: str) -> None:
    with pytest.raises(InvalidInput, match=f'"{url}" is not the address of a gateway'):
        Client(url)


def test_a_url_is_no_address_of_grpc() -> None:
    with pytest.raises(InvalidInput, match="is a URL; a gRPC address is HOST:PORT"):
        GrpcClient("http://127.0.0.1:9000")


@pytest.mark.parametrize("kind", [Client, GrpcClient])
def test_what_can_never_be_asked_is_said_before_anything_is_sent(kind: Any) -> None:
    with kind() as client:
        with pytest.raises(InvalidInput, match="a version or a label needs a model"):
            client.classify(b"x", version=1)
        with pytest.raises(InvalidInput, match="a version or a label needs a model"):
            client.classify(b"x", label="stable")
        for empty in ({"model": ""}, {"model": "digits", "label": ""}):
            with pytest.raises(InvalidInput, match="the name of a model, or a label, is empty"):
                client.classify(b"x", **empty)
        with pytest.raises(InvalidInput, match="there is no image; give at least one"):
            client.classify([])
        for wrong in ({"top_k": "3"}, {"top_k": 1.0}, {"model": "digits", "version": "1"}):
            (name, given) = list(wrong.items())[-1]
            with pytest.raises(InvalidInput, match=f"^{name} is {given!r}; it is a whole number, or None$"):
                client.classify(b"x", **wrong)
        for timeout_s in (float("inf"), float("nan"), 1e12):
            with pytest.raises(InvalidInput, match=r"timeout_s is .*; it is a number of seconds, a year"):
                client.classify(b"x", timeout_s=timeout_s)


@pytest.mark.parametrize("kind", [Client, GrpcClient])
def test_a_name_that_is_no_text_is_said_before_anything_is_sent(kind: Any) -> None:
    """For example, a command line argument whose bytes are not UTF-8."""
    with kind() as client:
        for asks in ({"model": "ma\udcdfe"}, {"model": "digits", "label": "ma\udcdfe"}):
            with pytest.raises(
                InvalidInput, match=r"is not text: its bytes are not UTF-8|cannot be sent over gRPC"
            ):
                client.classify(b"x", **asks)


def test_no_version_over_grpc_stands_for_another() -> None:
    with GrpcClient() as client:
        with pytest.raises(InvalidInput, match="version is 0, which over gRPC stands for the routed one"):
            client.classify(b"x", model="digits", version=0)
        with pytest.raises(InvalidInput, match=r"cannot be sent over gRPC: .*out of range"):
            client.classify(b"x", model="digits", version=2**63)


@pytest.mark.parametrize("client", [Client, GrpcClient])
@pytest.mark.parametrize(
    ("images", "not_this"),
    [
        ("seven.png", r"str; Path\(\.\.\.\) reads a file"),
        (["seven.png"], r"str; Path\(\.\.\.\) reads a file"),
        ([3], "int"),
        (None, "NoneType"),
        (gradient(8, 8, "L"), f"Image{ENCODE}"),
        ([gradient(8, 8, "L")], f"Image{ENCODE}"),
        (np.zeros((8, 8), np.uint8), f"ndarray{ENCODE}"),
        # Its lines are bytes, too.
        (io.BytesIO(b"an\nimage"), r"BytesIO; its read\(\) gives bytes"),
    ],
)
def test_what_is_no_image_is_said_before_anything_is_sent(client: Any, images: Any, not_this: str) -> None:
    expected = f"^an image is an encoded file, as bytes or a Path, not {not_this}$"
    with client() as asked, pytest.raises(InvalidInput, match=expected):
        asked.classify(images)


@pytest.mark.parametrize("kind", [Client, AsyncClient, GrpcClient, AsyncGrpcClient])
@pytest.mark.parametrize("key", ["s3cret\n", "two s3cret", "s3crét", "s3cret\x7f"])
def test_what_cannot_be_a_key_is_said_without_it(kind: Any, key: str) -> None:
    with pytest.raises(InvalidInput, match="the API key has a character that no key has") as refused:
        kind(api_key=key)
    assert "s3cr" not in refused.value.message


@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"first_pause_s": -1.0}, {"longest_pause_s": float("nan")}]
)
def test_what_cannot_be_tried_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(
        InvalidInput, match=r"is not valid: attempts must be at least 1, and no pause below 0"
    ):
        Retries(**wrong)
