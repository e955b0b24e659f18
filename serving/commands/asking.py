"""How commands call a gateway over HTTP: where it is, with which key, and what to say if nobody answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.errors import InvalidInput, SluiceError

if TYPE_CHECKING:  # imported when a command runs, so that --help stays fast
    import ssl

    import httpx

_TIMEOUT_S = 10.0

ApiKey = Annotated[
    str | None, typer.Option(envvar="SLUICE_API_KEY", help="API key or token; better set in the environment.")
]
Url = Annotated[str, typer.Option(envvar="SLUICE_URL", help="URL of the gateway.")]
Ca = Annotated[
    Path | None,
    typer.Option(
        envvar="SSL_CERT_FILE", help="PEM file of the authorities that issued the gateway's certificate."
    ),
]

START_ONE = "start one: sluice serve, or pass --url"


def connection(url: str, api_key: str | None, ca: Path | None = None) -> httpx.Client:
    """A connection to a gateway; raises InvalidInput if its address, key or authorities are invalid."""
    import httpx

    from serving.gateway_url import authorization, checked

    return httpx.Client(
        base_url=checked(url), timeout=_TIMEOUT_S, headers=authorization(api_key), verify=trusting(ca)
    )


def trusting(ca: Path | None) -> ssl.SSLContext | bool:
    """What httpx takes as `verify` to trust these authorities; raises InvalidInput if the file has none."""
    import ssl

    if ca is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(ca))
    except (ssl.SSLError, OSError) as error:
        raise InvalidInput(f"--ca (SSL_CERT_FILE) {ca} cannot be used: {error.strerror or error}") from error


def ask(client: httpx.Client, method: str, path: str) -> httpx.Response:
    """The gateway's answer.

    Raises:
        InvalidInput: nobody answers there, or a key is missing or wrong; the text says what to do.
        DeadlineExceeded: the answer takes too long.
        SluiceError: the gateway refuses.
    """
    import httpx

    from serving.gateway_url import for_command, key_refused, unanswered

    try:
        answer = client.request(method, path)
    except httpx.RequestError as error:
        raise for_command(unanswered(client.base_url, error, _TIMEOUT_S), START_ONE) from error
    if answer.is_success:
        return answer
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise InvalidInput(f"{client.base_url} refused: {key_refused('authorization' in client.headers)}")
    try:
        refused = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        refused = "not what a Sluice gateway answers"
    raise SluiceError(f"{client.base_url} answered {answer.status_code}: {refused}")


@contextmanager
def read_as_a_gateways(client: httpx.Client) -> Iterator[None]:
    """While an answer is read in the block, turn what shows that it is not a gateway's into a SluiceError."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SluiceError(
            f"{client.base_url} answers, but not as a Sluice gateway does; is it the right address?"
        ) from error
