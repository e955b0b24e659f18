"""What ties one request's traces together across programs: request ids, and W3C trace context."""

from __future__ import annotations

import os
import random
import re
from dataclasses import dataclass

# What a caller may send that goes into logs and answers unchanged.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
# W3C Trace Context, 3.2: version, trace id, parent id, flags; only a version to come may have more.
_TRACEPARENT = re.compile(
    r"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
_TWO_TO_64 = 2.0**64


@dataclass(frozen=True, slots=True)
class Trace:
    """One request's place in a trace: hexadecimal ids, as W3C Trace Context has them.

    Attributes:
        trace_id: 32 digits.
        span_id: 16 digits; this request's own.
        parent_id: the caller's span, or empty where the trace begins here.
        sampled: whether it is recorded.
    """

    trace_id: str = ""
    span_id: str = ""
    parent_id: str = ""
    sampled: bool = False

    @property
    def traceparent(self) -> str:
        """The header that propagates this trace."""
        return f"00-{self.trace_id}-{self.span_id}-{self.sampled:02x}"

    def below(self) -> Trace:
        """A new span within the same trace, under this one."""
        return Trace(self.trace_id, _hex(8), self.span_id, self.sampled)


# The kernel's random numbers cost a system call each, which hands the interpreter lock to a decoding thread:
# three of them were a tenth of a request. Ids are no secrets.
_random = random.Random(os.urandom(32))


def _hex(size_bytes: int) -> str:
    """A new id of this many bytes in hexadecimal; never all zeros."""
    return f"{_random.getrandbits(8 * size_bytes) or 1:0{2 * size_bytes}x}"


def request_id_from(given: str) -> str:
    """The caller's id if it is a sane one, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else _hex(16)


def child_of(traceparent: str, share: float = 0.0) -> Trace:
    """This request's trace: the caller's if its `traceparent` is valid, else a new one.

    Args:
        traceparent: the header, or an empty text.
        share: share of the traces that begin here that is sampled, 0 to 1. A caller's trace is sampled if the
            caller samples it.
    """
    found = _TRACEPARENT.fullmatch(traceparent)
    if found:
        return Trace(found[1], _hex(8), found[2], bool(int(found[3], 16) & 1))
    trace_id = _hex(16)
    # As OpenTelemetry's TraceIdRatioBased does it: every program that sees the id decides alike.
    sampled = int(trace_id[16:], 16) < share * _TWO_TO_64
    return Trace(trace_id, _hex(8), "", sampled)
