"""Which heads of requests are taken: RFC 9112 has a server refuse what two of them could read differently."""

from __future__ import annotations

import httpx
import pytest

from serving.main import Running
from serving.rest.head import MAX_HEAD_BYTES, Refused, check
from tests.doors.wire import CLOSE, HEAD, classified, exchange, port_of, statuses

CHUNKED = b"1\r\nx\r\n0\r\n\r\n"
BEHIND = b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n"


def get(version: bytes, *headers: bytes) -> bytes:
    """A request for `/healthz`."""
    return b"\r\n".join((b"GET /healthz HTTP/" + version, *headers, CLOSE, b""))


@pytest.mark.parametrize(
    ("sent", "status", "says"),
    [
        (get(b"1.1"), 400, b"the request has no Host header; it needs one in HTTP/1.1"),
        (get(b"1.1", b"Host: a", b"Host: b"), 400, b"the request has 2 Host headers"),
        (get(b"1.1", b"Host: a", b"host: a"), 400, b"the request has 2 Host headers"),
        (get(b"1.0", b"Host: a", b"Host: a"), 400, b"the request has 2 Host headers"),
        (get(b"1.1", b"Host: a/b"), 400, rb"the Host header is \"a/b\""),
        (get(b"1.0", b"Host: a b"), 400, rb"the Host header is \"a b\""),
        (get(b"1.0"), 200, b"ok"),
        (get(b"1.1", b"Host:"), 200, b"ok"),
        (get(b"1.1", b"Host: models.example.org:8080"), 200, b"ok"),
        (get(b"2.0", b"Host: x"), 505, b"HTTP/2.0 is not spoken here"),
        (b"GET /healthz\r\n\r\n", 505, b"HTTP/0.9 is not spoken here"),
        (
            b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
            400,
            b"valid HTTP/1.1: b'a:1' is not a request target",
        ),
        (b"GET http://a?b HTTP/1.1\r\nHost: a\r\n\r\n", 400, b"b'http://a?b' is not a request target"),
        (b"GET /healthz HTTP/1.1\nHost: a\n\n", 400, b"not valid HTTP/1.1: Expected CRLF after version"),
        (
            b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            414,
            b"the request target, 70,001 bytes,",
        ),
        (b"GET /" + b"a" * 300_000, 414, b"over 65,536 bytes"),
    ],
)
async def test_a_head_is_taken_or_refused_with_a_cause(
    gateway: tuple[Running, httpx.AsyncClient], sent: bytes, status: int, says: bytes
) -> None:
    running, client = gateway
    answers = await exchange(port_of(running), sent + (BEHIND if status != 200 else b""))
    assert statuses(answers) == [status], answers
    assert says in answers, answers
    assert await classified(client)


@pytest.mark.parametrize(
    ("coding", "status"),
    [
        (b"Transfer-Encoding: gzip, chunked\r\n", 501),
        (b"Transfer-Encoding: gzip\r\nTransfer-Encoding: Chunked\r\n", 501),
        (b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: gzip, chunked\r\n", 501),
        (b"Transfer-Encoding: chunked, chunked\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Transfer-Encoding: gzip\r\n", 400),
        (b"Transfer-Encoding: identity\r\n", 400),
        (b"Transfer-Encoding: chunked;q=1\r\n", 400),
        (b"Content-Length: 11\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", 400),
        (b"Content-Length: 11\r\nTransfer-Encoding: gzip, chunked\r\n", 400),
    ],
)
async def test_a_body_in_a_coding_that_is_not_taken_ends_the_connection(
    gateway: tuple[Running, httpx.AsyncClient], coding: bytes, status: int
) -> None:
    """What is behind it could be of the body (RFC 9112, 6.1 and 6.3), and is no request."""
    running, client = gateway
    answers = await exchange(port_of(running), HEAD + coding + b"\r\n" + CHUNKED + BEHIND)
    assert statuses(answers) == [status], answers
    assert b"Transfer-Encoding" in answers
    assert b"connection: close" in answers
    assert running.gateway.admission.in_flight == 0
    assert await classified(client)


async def test_a_transfer_encoding_in_http_1_0_ends_the_connection(
    gateway: tuple[Running, httpx.AsyncClient],
) -> None:
    running, _ = gateway
    head = (
        HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n"
    )
    answers = await exchange(port_of(running), head + b"\r\n" + CHUNKED + BEHIND)
    assert statuses(answers) == [400]
    assert b"the request has a Transfer-Encoding, which HTTP/1.0 does not know" in answers


@pytest.mark.parametrize(
    "host",
    [
        b"", b"x", b"x:", b"x:80", b":80", b"a_b.example", b"127.0.0.1:8080", b"[::1]",
        b"[fe80::1%25eth0]:8080", b"%e4", b"a,b", b"x" * 300,
    ],
)  # fmt: skip
def test_a_host_is_a_name_or_an_address_with_a_port_or_without(host: bytes) -> None:
    check("1.1", b"/", [(b"host", host)])


@pytest.mark.parametrize(
    "host",
    [
        b"a b",
        b"a/",
        b"user@x",
        b"x:y",
        b"x:1:2",
        b"::1",
        b"[]",
        b"[::1",
        b"%zz",
        b"a\xe4",
        b"http://x",
        b"a?",
        b"a#",
    ],
)
def test_what_is_no_host_is_refused(host: bytes) -> None:
    with pytest.raises(Refused, match="the Host header is") as refused:
        check("1.1", b"/", [(b"host", host)])
    assert refused.value.status == 400


@pytest.mark.parametrize(("version", "coding"), [("1.1", b"chunked"), ("1.1", b" ,\tCHUNKED ,")])
def test_chunks_are_taken(version: str, coding: bytes) -> None:
    check(version, b"/", [(b"host", b"x"), (b"transfer-encoding", coding)])


def test_a_head_is_taken_up_to_its_limit_and_its_larger_part_is_blamed() -> None:
    host, rest = (b"host", b"x"), MAX_HEAD_BYTES - 9
    check("1.1", b"/" * rest, [host])
    with pytest.raises(Refused) as target:
        check("1.1", b"/" * (rest + 1), [host])
    check("1.1", b"/" * 10, [host, (b"x", b"a" * (rest - 15))])
    with pytest.raises(Refused) as headers:
        check("1.1", b"/" * 10, [host, (b"x", b"a" * (rest - 14))])
    assert (target.value.status, headers.value.status) == (414, 431)
