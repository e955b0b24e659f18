"""What ties one request's traces together across programs: request ids, and W3C trace context."""

from __future__ import annotations

import re
import secrets
import uuid

# What may be taken from a caller into logs and answers as it stands.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
# W3C Trace Context, 3.2: version, trace id, parent id, flags.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?"
)


def request_id_from(given: str) -> str:
    """The caller's id if it is a sane one, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def child_of(traceparent: str) -> str:
    """A `traceparent` for this request: in the caller's trace if that is valid, else in a new one."""
    found = _TRACEPARENT.fullmatch(traceparent)
    trace_id, flags = (found[1], found[2]) if found else (secrets.token_hex(16), "00")
    return f"00-{trace_id}-{secrets.token_hex(8)}-{flags}"
