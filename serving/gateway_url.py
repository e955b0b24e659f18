"""Where a gateway is, and what to say if none answers there."""

from __future__ import annotations

import httpx

from serving.errors import InvalidInput, Unavailable

ASKS_FOR_A_KEY = "it asks for a key: pass --api-key, or better set SLUICE_API_KEY"
"""What a command says instead of how credentials are sent: the command sends them."""


def checked(url: str) -> httpx.URL:
    """The address, parsed; raises InvalidInput if it is none."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError, ValueError) as error:
        raise InvalidInput(f'"{url}" is no address of a gateway: {error}') from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidInput(
            f'"{url}" is no address of a gateway; one begins with http:// or https://, '
            "such as http://127.0.0.1:8080"
        )
    return parsed


def check_target(target: str) -> None:
    """Raises InvalidInput if the address of a gRPC API is a URL, which gRPC would look up as a name."""
    if target.startswith(("http://", "https://")):
        raise InvalidInput(
            f'"{target}" is a URL; a gRPC address is HOST:PORT, such as 127.0.0.1:9000; credentials make TLS'
        )


def unreachable(url: httpx.URL, error: Exception) -> Unavailable:
    """What to raise when a request did not get through to the gateway, or its answer not back."""
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx.RemoteProtocolError):
        return Unavailable(f"what answers at {url} does not speak HTTP ({reason}); is it a gRPC port?")
    return Unavailable(f"no gateway answers at {url}: {reason}")
