"""Where a gateway is, how a key is sent to it, and what to say if none answers there."""

from __future__ import annotations

import errno
from urllib.parse import quote
from urllib.request import getproxies, proxy_bypass

import httpx

from serving.errors import DeadlineExceeded, InvalidInput, SluiceError, Unavailable

_NOBODY = "no gateway answers at"


def checked(url: str) -> httpx.URL:
    """The address, parsed; raises InvalidInput if it is not one."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError, ValueError) as error:
        raise InvalidInput(f'"{url}" is not the address of a gateway: {error}') from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidInput(
            f'"{url}" is not the address of a gateway; it must begin with http:// or https://, '
            "such as http://127.0.0.1:8080"
        )
    return parsed


def segment(name: str) -> str:
    """Any name, encoded as one segment of a path.

    A name made of dots alone is encoded, too: a plain `..` would remove the segment before it.

    Raises:
        InvalidInput: it is not text; for example, a command line argument whose bytes are not UTF-8.
    """
    try:
        encoded = quote(name, safe="")
    except UnicodeEncodeError:
        raise InvalidInput(f"{name!r:.300} is not text: its bytes are not UTF-8") from None
    return encoded if encoded.strip(".") else encoded.replace(".", "%2E")


def check_target(target: str) -> None:
    """Raises InvalidInput if the address of a gRPC API is a URL, which gRPC would look up as a name."""
    if target.startswith(("http://", "https://")):
        raise InvalidInput(
            f'"{target}" is a URL; a gRPC address is HOST:PORT, such as 127.0.0.1:9000; credentials make TLS'
        )


def authorization(api_key: str | None) -> dict[str, str]:
    """The header of HTTP, or the metadata of gRPC, that sends a key or token; nothing without one.

    Raises:
        InvalidInput: It cannot be a key. The text does not show it, as those of httpx and gRPC would.
    """
    if not api_key:
        return {}
    if not all("!" <= each <= "~" for each in api_key):
        raise InvalidInput(
            "the API key has a character that no key has: a space, a line break at its end, or a letter "
            "beyond ASCII"
        )
    return {"authorization": f"Bearer {api_key}"}


def key_refused(sent: bool) -> str:
    """What a command says about a 401, in place of how to send credentials: it sends them itself."""
    if sent:
        return "it does not take the API key that was given; it may be another gateway's, revoked, or expired"
    return "it requires a key: pass --api-key, or better set SLUICE_API_KEY"


def unanswered(url: httpx.URL, error: Exception, timeout_s: float) -> SluiceError:
    """What to raise when a request did not get through to the gateway, or its answer not back in time."""
    reason = str(error) or type(error).__name__
    # A gateway that does not even accept a connection is away, and so is one whose path the kernel found to
    # be cut, for which Python also raises a timeout; any other timeout means that it was too slow.
    is_late = isinstance(error, httpx.TimeoutException | TimeoutError)
    is_cut = isinstance(error, httpx.ConnectTimeout) or f"[Errno {errno.ETIMEDOUT}]" in reason
    if is_late and not is_cut:
        return DeadlineExceeded(f"{url} did not answer within {timeout_s:.3g} s")
    hung_up = "disconnected" in reason or "closed" in reason
    if isinstance(error, httpx.RemoteProtocolError) and not hung_up:
        return Unavailable(f"what answers at {url} does not speak HTTP ({reason}); is it a gRPC port?")
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return Unavailable(
            f"the certificate that {url} shows is not trusted ({reason}); SSL_CERT_FILE may name a PEM file "
            "of the authorities that are"
        )
    return Unavailable(f"{_NOBODY} {url}: {reason}{_by_proxy(url)}")


def _by_proxy(url: httpx.URL) -> str:
    """A note that a proxy was in between, if so: if one is set, even local gateways are asked through it."""
    proxies = getproxies()
    if not ({url.scheme, "all"} & proxies.keys()) or proxy_bypass(url.host):
        return ""
    return " (asked through the proxy that the environment names; NO_PROXY lists hosts to ask directly)"


def for_command(error: SluiceError, hint: str) -> SluiceError:
    """What `unanswered` gave, for a command's user, who can correct an address but not slowness.

    Args:
        error: What `unanswered` gave.
        hint: What to do where nobody answers.
    """
    if isinstance(error, DeadlineExceeded):
        return error
    return InvalidInput(f"{error.message}; {hint}" if error.message.startswith(_NOBODY) else error.message)
