"""Errors as TensorFlow Serving has them: a canonical code and a text.

The rest of `serving` speaks in kinds (`serving.errors`); here the codes themselves are the contract.
"""

from __future__ import annotations

import enum


class Code(enum.IntEnum):
    """The canonical codes (`google.rpc.Code`), which gRPC and TensorFlow share."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class StatusError(Exception):
    """A request, a load or a start that failed.

    Attributes:
        code: the canonical code.
        message: the text as a client sees it, before truncation.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        """As the original prints a status: `NOT_FOUND: no such thing`."""
        return f"{self.code.name}: {self.message}"


def invalid_argument(message: str) -> StatusError:
    """The request can never work as it stands."""
    return StatusError(Code.INVALID_ARGUMENT, message)


def not_found(message: str) -> StatusError:
    """There is no such model, version or file."""
    return StatusError(Code.NOT_FOUND, message)


def failed_precondition(message: str) -> StatusError:
    """The thing exists but cannot do this."""
    return StatusError(Code.FAILED_PRECONDITION, message)


def detached(error: BaseException) -> StatusError:
    """The status that stands for `error`, without references to where it came from.

    The frames that an error passed hold a session and its graph, and so does a TensorFlow error that names an
    op: whoever frees these, or keeps the status, must not keep the error.
    """
    status = from_exception(error)
    return StatusError(status.code, status.message)


def from_exception(error: BaseException) -> StatusError:
    """The status that stands for `error`: TensorFlow's own code if it has one, else INTERNAL."""
    if isinstance(error, StatusError):
        return error
    code = getattr(error, "error_code", None)
    text = getattr(error, "message", None) or str(error)
    if isinstance(code, int) and code in Code._value2member_map_:
        return StatusError(Code(code), text)
    return StatusError(Code.INTERNAL, f"{type(error).__name__}: {text}")
