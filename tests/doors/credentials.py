"""API keys: made by `sluice keys`, and sent with a request."""

from __future__ import annotations

import httpx
from typer.testing import CliRunner

from serving.commands.app import build
from tests.doors.wire import PATH, PNG
from tests.support.http import grey_png


def keys_command(*arguments: str, code: int = 0) -> str:
    """What the command prints; it must end with `code`."""
    result = CliRunner().invoke(build(), ["keys", *arguments])
    assert result.exit_code == code, result.output
    return result.output.strip()


def bearer(token: str) -> dict[str, str]:
    """The header that carries a key or a token."""
    return {"authorization": f"Bearer {token}"}


async def post(client: httpx.AsyncClient, headers: dict[str, str]) -> httpx.Response:
    """Have an image classified."""
    return await client.post(PATH, content=grey_png(200), headers={**PNG, **headers})
