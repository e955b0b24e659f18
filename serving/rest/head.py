"""Which request heads are accepted: by their size, their `Host`, and how they frame the body.

The parser accepts what HTTP/1.1 (RFC 9112) requires a server to refuse; a proxy in front and the gateway
could then see different hosts, or different requests, in the same bytes (request smuggling).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from serving.errors import InvalidInput, SluiceError, Unimplemented

# Cookies and tokens of a browser come to 16 kB at most; a proxy adds little.
MAX_HEAD_BYTES = 64 * 2**10

# uri-host [ ":" port ] (RFC 3986, 3.2.2), or nothing if the target has no authority (RFC 9110, 7.2).
_HOST = re.compile(
    rb"(?:\[[0-9A-Za-z:._~%!$&'()*+,;=-]+\]|(?:[0-9A-Za-z._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?"
)


class Refused(Exception):
    """A head that is refused.

    Attributes:
        status: HTTP's number for it.
        error: what is wrong with it.
    """

    def __init__(self, status: int, error: SluiceError) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error


def check(version: str, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raise Refused unless a head is acceptable.

    Args:
        version: of HTTP, such as `1.1`.
        target: the request's.
        headers: names in lower case, and values.
    """
    size, hosts, codings = len(target), [], []
    for name, value in headers:
        size += len(name) + len(value) + 4
        if name == b"host":
            hosts.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
    if size > MAX_HEAD_BYTES:
        raise too_large(len(target), size)
    if version not in ("1.1", "1.0"):
        raise Refused(
            505, InvalidInput(f"HTTP/{version} is not spoken here; send HTTP/1.1", stage="admission")
        )
    _check_host(version, hosts)
    if codings:
        _check_codings(version, b", ".join(codings).decode("latin-1"))


def too_large(target_bytes: int, head_bytes: int) -> Refused:
    """Why a head over `MAX_HEAD_BYTES` is refused: for its target, or for its headers."""
    if 2 * target_bytes > head_bytes:
        text = (
            f"the request target, {target_bytes:,} bytes, and the headers are over {MAX_HEAD_BYTES:,} bytes"
        )
        return Refused(414, InvalidInput(text, stage="admission"))
    text = f"the request line and headers are over {MAX_HEAD_BYTES:,} bytes"
    return Refused(431, InvalidInput(text, stage="admission"))


def _check_host(version: str, hosts: Sequence[bytes]) -> None:
    """Raise Refused unless there is one host, or none in HTTP/1.0 (RFC 9112, 3.2)."""
    if len(hosts) > 1:
        raise _bad(f"the request has {len(hosts)} Host headers; it may have one")
    if not hosts:
        if version == "1.1":
            raise _bad("the request has no Host header; it needs one in HTTP/1.1")
    elif not _HOST.fullmatch(hosts[0]):
        raise _bad(
            f'the Host header is "{hosts[0][:100].decode("latin-1")}"; it is a host\'s name or address'
        )


def _check_codings(version: str, given: str) -> None:
    """Raise Refused unless the body is chunked and nothing else (RFC 9112, 6.1 and 6.3)."""
    if version == "1.0":
        raise _bad("the request has a Transfer-Encoding, which HTTP/1.0 does not know")
    codings = [each for each in (part.strip(" \t").lower() for part in given.split(",")) if each]
    if codings == ["chunked"]:
        return
    text = f'the Transfer-Encoding is "{given[:100]}"; the only one allowed is "chunked"'
    if codings.count("chunked") != 1 or codings[-1] != "chunked":  # where the body ends is anybody's guess
        raise _bad(text)
    raise Refused(501, Unimplemented(text, stage="admission"))


def _bad(text: str) -> Refused:
    return Refused(400, InvalidInput(text, stage="admission"))
