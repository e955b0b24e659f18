"""The command `classify`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.commands import Url, answer_or_exit, user_errors
from serving.errors import InvalidInput


def classify(
    images: Annotated[list[Path], typer.Argument(help="Image files; - for standard input.")],
    url: Url = "http://127.0.0.1:8080",
    model: Annotated[str | None, typer.Option(help="Model.", show_default="the gateway's default")] = None,
    version: Annotated[int | None, typer.Option(help="Version.", show_default="the routed one")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes for each image.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answers as JSON, one a line.")] = False,
) -> None:
    """Classify image files with a running gateway. Exits with 1 if any of them failed."""
    with user_errors():
        import httpx

        path = "/v1/classify" if model is None else f"/v1/models/{model}"
        if version is not None:
            if model is None:
                raise InvalidInput("--version needs --model")
            path += f"/versions/{version}"
        path += "" if model is None else ":classify"
        failed = False
        with httpx.Client(base_url=url, timeout=60) as client:
            for image in images:
                data = sys.stdin.buffer.read() if str(image) == "-" else image.read_bytes()
                answer = answer_or_exit(
                    client,
                    "POST",
                    path,
                    params={"top_k": top_k},
                    content=data,
                    headers={"content-type": "application/octet-stream"},
                )
                failed |= not answer.is_success
                _print_answer(image, answer.json(), as_json=as_json)
        raise typer.Exit(1 if failed else 0)


def _print_answer(image: Path, answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"file": str(image), **answer}))
    elif "results" not in answer:
        print(f"{image}: error: {answer['detail']}", file=sys.stderr)
    else:
        classes = answer["results"][0]["classes"]
        shown = ", ".join(f"{each['label']} {each['score']:.4f}" for each in classes)
        print(f"{image}: {shown}  ({answer['model']} version {answer['version']})")
