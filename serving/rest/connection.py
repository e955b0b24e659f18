"""One HTTP connection: uvicorn's protocol, with limits on its age, and on the time and size of headers.

By itself uvicorn waits for headers for ever, and accepts them in any size. The trailers of a chunked body it
adds to the request's headers while the request is being answered. If a request offers another protocol, it
drops the body, and takes what arrives of it later for the next request. Pipelined requests it queues without
a limit.
"""

from __future__ import annotations

import asyncio
import math
import random
import socket
import struct
from collections.abc import Sized
from typing import Any, cast

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.errors import DeadlineExceeded, InvalidInput, SluiceError, out_of_memory
from serving.rest import head
from serving.rest.corked import CorkedTransport
from serving.rest.errors import problem_body
from serving.rest.leaving import Client
from serving.rest.unread import Unread
from serving.settings import Settings

# The most that may come without a byte of body: of a head, of trailers, or of other framing around chunks.
MAX_FRAMING_BYTES = head.MAX_HEAD_BYTES
# How much is parsed in one step, unless more is left of a body. A parsed request without a body takes some
# 2 kB of memory, seventy times its bytes on the wire.
STEP_BYTES = 16 * 2**10
# How long a client may take to read why it was refused: after it last sent something, and in total.
LINGER_S = 1.0
MOST_LINGER_S = 10.0
# SO_LINGER's on, and for no second: what is closed then is reset (socket(7)).
_RESET = struct.pack("ii", 1, 0)


class _Flow(FlowControl):
    """Does not resume reading while pipelined requests wait to be answered.

    Args:
        transport: what is read.
        waiting: those requests.
    """

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        """Read again, unless requests wait."""
        if not self._waiting:
            super().resume_reading()


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, which gives up on clients whose headers are too slow or too large.

    Nor does it wait for ever for those who hardly read their answers. Clients that keep a connection for long
    are told to reconnect: another gateway may have been added.

    Args:
        settings: times, and the slowest rate.
        unread: where answers are counted that wait to be read.
        args, kwargs: uvicorn's own.
    """

    def __init__(self, *args: Any, settings: Settings, unread: Unread, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = settings
        self._old_at = self.loop.time() + settings.connection_age_s * random.uniform(0.9, 1.1)
        self._unread = unread
        self._answer_bytes = 0
        self._unread_timer: asyncio.TimerHandle | None = None
        self._header_timer: asyncio.TimerHandle | None = None
        self._in_head = False
        self._in_body = False
        self._body_left_bytes = 0
        self._framing_bytes = 0
        self._refused = False
        self._still_sends = False
        self._unparsed = b""
        # `cycle` is the latest one, which may have to wait.
        self._answering: RequestResponseCycle | None = None
        self._client = Client()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for the first headers."""
        super().connection_made(cast("asyncio.Transport", CorkedTransport(transport, self.loop)))
        self.flow = _Flow(self.transport, self.pipeline)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting, and stop the work that is done only for this client."""
        self._stop_waiting()
        super().connection_lost(exc)
        self._is_read()
        self._disconnect()
        self._client.leave()

    def pause_writing(self) -> None:
        """Count an answer that waits to be read, and wait for it no longer than for a body of its size."""
        super().pause_writing()
        buffered_bytes = self.transport.get_write_buffer_size()
        left_bytes = 0 if self._answering is None else self._answering.expected_content_length
        # It is let go once all of it is written, so what was read of it counts until then.
        self._answer_bytes = max(self._answer_bytes, buffered_bytes + left_bytes)
        patience_s = self._settings.body_grace_s + buffered_bytes / self._settings.min_body_bytes_per_s
        self._is_read()
        self._unread_timer = self.loop.call_later(patience_s, self._cut_off)
        self._unread.wait(self._cut_off, self._answer_bytes)

    def resume_writing(self) -> None:
        """Most of what was written has been read."""
        self._is_read()
        super().resume_writing()

    def _is_read(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
            self._unread.end(self._cut_off)

    def _cut_off(self) -> None:
        """Reset the connection: after an ordinary close the kernel would keep what it has to send, too."""
        self._is_read()
        connected = self.transport.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse what came, and count it while it is no body. What comes after a refusal is thrown away."""
        if self._refused:
            self._still_sends = True
            return
        in_body = self._in_body  # of a request that was answered early: limited in time, not in length
        self._framing_bytes += len(data)  # reset at the end of a head, and by each piece of a body
        self._parse(data)
        if self._framing_bytes > MAX_FRAMING_BYTES:  # the parser keeps a header, however long, until it ends
            if self._in_head:
                found = head.too_large(len(self.url), self._framing_bytes)
                self._refuse(found.status, found.error)
            elif self._in_body:
                self._refuse(431, _framing_too_large())
        # Most heads come whole: a timer for each before it is parsed would cost as much as parsing it.
        if self._is_answered() and not self._refused:
            if in_body and not (self._in_body or self._in_head):
                self._wait_for_next()
            elif self._header_timer is None:
                self._wait_for_head()

    def _parse(self, data: bytes) -> None:
        """Parse what came, up to a request that has to wait for its turn; keep the rest until then."""
        self._unset_keepalive_if_required()
        rest = memoryview(self._unparsed + data)
        self._unparsed = b""
        try:
            while rest and not self.pipeline:
                rest = self._parsed(rest)
        except httptools.HttpParserError as error:
            self._refuse_as(error)
        else:
            self._unparsed = bytes(rest)

    def _parsed(self, data: memoryview) -> memoryview:
        """Parse some of the bytes; returns the rest.

        After a head that offers another protocol (`Upgrade`), the parser takes what follows for that
        protocol's. A server may ignore such offers (RFC 9110, 7.8), and Java's client offers HTTP/2 every
        time: so the head is parsed once more without the offer.
        """
        step_bytes = max(STEP_BYTES, self._body_left_bytes)
        try:
            self.parser.feed_data(data[:step_bytes])
            return data[step_bytes:]
        except httptools.HttpParserUpgrade as upgrade:
            end = upgrade.args[0]
        if not self._offers_another_protocol():
            return data[:0]
        self.parser.feed_data(self._head_without_offer())
        return data[end:]

    def _offers_another_protocol(self) -> bool:
        """Whether the parsed head has an `Upgrade`; `CONNECT`, which the parser treats alike, has none."""
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _head_without_offer(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % each for each in self.headers if each[0] != b"upgrade"]
        return b"\r\n".join((*lines, b"\r\n"))

    def on_message_begin(self) -> None:
        """Begin reading a request's headers."""
        self._in_head = True
        super().on_message_begin()
        self.scope["state"]["client"] = self._client

    def on_headers_complete(self) -> None:
        """Start the request, unless its head is to be parsed once more."""
        if self._offers_another_protocol():
            return
        self._in_head = False
        self._stop_waiting()
        head.check(self.parser.get_http_version(), self.url, self.headers)
        self._in_body = True
        lengths = (int(value) for name, value in self.headers if name == b"content-length")
        self._body_left_bytes = next(lengths, 0)
        self._framing_bytes = 0
        if self.expect_100_continue and self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # such a client takes the 100 for the answer (RFC 9110, 10.1.1)
        super().on_headers_complete()
        if not self.pipeline:
            self._answering = self.cycle
        if self.loop.time() > self._old_at:
            self.cycle.keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, and drop a trailer, which must not be merged into the headers (RFC 9110, 6.5.1).

        Whitespace around a value is not part of it (RFC 9110, 5.5); the parser drops only what precedes it.
        """
        if not self._in_body:
            super().on_header(name, value.rstrip(b" \t"))

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._framing_bytes = 0
        self._body_left_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The body has come."""
        if self._offers_another_protocol():
            return
        self._in_body = False
        self._body_left_bytes = 0
        self.scope["state"]["body_here"] = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request, part of which may be here already."""
        self._answer_bytes = 0
        if self._answering is not None:  # kept until the next request; if refused, its body is unread
            self._answering.body = bytearray()
        if self.pipeline:
            self._answering = self.pipeline[-1][0]
        super().on_response_complete()
        if self._unparsed and not self.pipeline:
            self._parse(b"")
        # The rest of a body whose request was answered early is waited for only as long as headers would be.
        if (self._in_head or self._in_body) and self._header_timer is None and self._is_answered():
            self._unset_keepalive_if_required()
            self._wait_for_head()

    def _refuse_as(self, error: httptools.HttpParserError) -> None:
        """Say what is wrong with bytes that are not HTTP, or with a head that is refused."""
        cause = error.__context__  # of an error in one of the methods that the parser calls
        if isinstance(cause, MemoryError):
            self._refuse(503, out_of_memory("admission"))  # the bytes may be fine, but cannot be kept
        elif isinstance(cause, head.Refused):
            self._refuse(cause.status, cause.error)
        else:
            why: object = error
            if isinstance(error, httptools.HttpParserCallbackError):  # uvicorn could not take it apart
                why = f"{self.url[:100]!r} is not a request target"
            text = f"the bytes are not valid HTTP/1.1: {why}"
            self._refuse(400, InvalidInput(text, stage="admission"))

    def _disconnect(self) -> bool:
        """Send no more of an answer, and tell its app; returns whether some of it was sent already."""
        if self._answering is None or self._answering.response_complete:
            return False
        self._answering.disconnected = True
        self._answering.message_event.set()
        return bool(self._answering.response_started)

    def _is_answered(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_next(self) -> None:
        """Become idle, now that all is here of a request that was answered early."""
        self._stop_waiting()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _wait_for_head(self) -> None:
        self._header_timer = self.loop.call_later(self._settings.header_timeout_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _give_up(self) -> None:
        self._header_timer = None
        if not self._in_head:  # nothing was asked, so nothing is answered
            self.transport.close()
            return
        text = f"the request's headers took longer than {self._settings.header_timeout_s:g} s"
        self._refuse(408, DeadlineExceeded(text, stage="admission"))

    def _refuse(self, status: int, error: SluiceError) -> None:
        """Answer outside of any request, and let the client read that before the connection is closed.

        Closing at once while the client still sends would make TCP reset the connection and lose the answer.
        """
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self.pipeline.clear()
        self._unparsed = b""
        self._stop_waiting()
        self._unset_keepalive_if_required()
        if self._disconnect():  # an answer inside an answer would be read as part of it
            self.transport.close()
            return
        body = problem_body(error, status=status, request_id="")
        lines = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n"
        )
        if error.retry_after_s is not None:
            lines += f"retry-after: {math.ceil(error.retry_after_s)}\r\n"
        lines += "\r\n"
        self.transport.write(lines.encode() + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(LINGER_S, self._close_once_quiet, self.loop.time() + MOST_LINGER_S)

    def _close_once_quiet(self, latest: float) -> None:
        if self._still_sends and self.loop.time() < latest:
            self._still_sends = False
            self.loop.call_later(LINGER_S, self._close_once_quiet, latest)
        else:
            self.transport.close()


_REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    414: "URI Too Long",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


def _framing_too_large() -> SluiceError:
    text = f"the trailers, or the extensions of a chunk, are over {MAX_FRAMING_BYTES:,} bytes"
    return InvalidInput(text, stage="admission")
