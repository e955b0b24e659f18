"""What can fail in Sluice, in one tree.

    SluiceError
    ├── InvalidInput            the caller sent something that can never work
    │   ├── BadImage            … an image that cannot be decoded
    │   ├── UnsupportedMedia    … a content type that is not taken
    │   └── TooLarge            … more bytes or pixels than the limit
    ├── Unauthenticated         no key, or a wrong one
    ├── PermissionDenied        a key without the scope that this needs
    ├── NotFound                no such model, version, label or path
    ├── FailedPrecondition      the thing exists but cannot do this (a model that takes no images)
    ├── Conflict                somebody else changed it first
    ├── Overloaded              refused to protect those already admitted; try again later
    ├── RateLimited             this caller is over its own limit
    ├── DeadlineExceeded        it could not be, or was not, done in time
    ├── Cancelled               the caller went away
    ├── Unavailable             no replica can answer now; try again later
    ├── Unimplemented           this server does not do that
    └── Internal                a fault of Sluice or of the model

Errors are kinds, not HTTP numbers: each transport maps every kind once (`serving.rest.errors`,
`serving.rpc.errors`), and a test proves that both maps are total.
"""

from __future__ import annotations

from typing import ClassVar, TypeVar

AnyError = TypeVar("AnyError", bound=BaseException)

# gRPC bounds all headers of an answer at 8 kB, and an error's text is one, with its details another.
_MOST_HEADER_BYTES = 1024


class SluiceError(Exception):
    """Base of everything that Sluice raises on purpose.

    Attributes:
        kind: a stable identifier in kebab-case; part of the public problem `type`.
        retryable: whether the same request may succeed later without a change.
        message: what failed and what would be right, for a person to read.
        stage: where on the request's path it failed (`admission`, `decode`, `routing`, `backend` …).
        retry_after_s: when a retry is worth trying, in seconds, if known.
    """

    kind: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, stage: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.stage = stage
        self.retry_after_s = retry_after_s


class InvalidInput(SluiceError):
    """The request can never work as it stands."""

    kind = "invalid-input"


class BadImage(InvalidInput):
    """The bytes are not an image that can be decoded."""

    kind = "bad-image"


class UnsupportedMedia(InvalidInput):
    """The content type is not one that this path takes."""

    kind = "unsupported-media"


class TooLarge(InvalidInput):
    """A body, a part or an image is over its limit."""

    kind = "too-large"


class Unauthenticated(SluiceError):
    """No credentials, or wrong ones; the text is the same for both."""

    kind = "unauthenticated"


class PermissionDenied(SluiceError):
    """The caller is known but may not do this."""

    kind = "permission-denied"


class NotFound(SluiceError):
    """There is no such model, version, label or path.

    Attributes:
        label: the version label that is missing; empty if it is something else.
    """

    kind = "not-found"

    def __init__(
        self, message: str, *, stage: str | None = None, retry_after_s: float | None = None, label: str = ""
    ) -> None:
        super().__init__(message, stage=stage, retry_after_s=retry_after_s)
        self.label = label


class FailedPrecondition(SluiceError):
    """The thing exists but is not in a state, or of a nature, to do this."""

    kind = "failed-precondition"


class Conflict(SluiceError):
    """A concurrent change won, or the thing exists already."""

    kind = "conflict"


class Overloaded(SluiceError):
    """Refused to protect the requests that were admitted before."""

    kind = "overloaded"
    retryable = True


def out_of_memory(stage: str | None = None) -> Overloaded:
    """For a request for which there is no memory; by the time it is retried others may be done."""
    text = "there is not enough memory for this request at the moment"
    return Overloaded(text, stage=stage, retry_after_s=1.0)


class RateLimited(SluiceError):
    """This caller is over its own limit."""

    kind = "rate-limited"
    retryable = True


class DeadlineExceeded(SluiceError):
    """The deadline passed, or was certain to pass."""

    kind = "deadline-exceeded"


class Cancelled(SluiceError):
    """The caller went away before the answer."""

    kind = "cancelled"


class Unavailable(SluiceError):
    """No replica can answer at the moment."""

    kind = "unavailable"
    retryable = True


class Unimplemented(SluiceError):
    """This server does not do that."""

    kind = "unimplemented"


class Internal(SluiceError):
    """A fault of Sluice or of the model, not of the caller."""

    kind = "internal"


def all_kinds() -> list[type[SluiceError]]:
    """Every concrete kind of error, parents before children."""

    def walk(cls: type[SluiceError]) -> list[type[SluiceError]]:
        found = [cls]
        for child in cls.__subclasses__():
            found += walk(child)
        return found

    return [kind for kind in walk(SluiceError) if kind is not SluiceError]


def shortened(text: str, most: int) -> str:
    """A text that may quote what a caller sent, cut to a harmless length; always valid Unicode."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= most else text[:most] + "…"


def for_a_header(message: str) -> str:
    """A text made fit for a gRPC header: valid Unicode, cut where TensorFlow Serving cuts it."""
    encoded = message.encode(errors="replace")
    if len(encoded) <= _MOST_HEADER_BYTES:
        return encoded.decode()
    return encoded[:_MOST_HEADER_BYTES].decode(errors="ignore") + "...TRUNCATED"


def without_frames(error: AnyError) -> AnyError:
    """The error without its traceback, so that it keeps none of the frames that it passed alive.

    Those frames hold a request's body, its images, its batch. One of them usually leads back to the error (by
    a future whose exception it is, say): a cycle, which stays until the garbage collector's next full run.
    That is seldom, and damaged images of a megabyte each are hundreds of megabytes by then.
    """
    links: list[BaseException | None] = [error]
    while links:
        link = links.pop()
        if link is not None and link.__traceback__ is not None:
            link.__traceback__ = None
            links += (link.__cause__, link.__context__)
    return error


def innermost(error: BaseException) -> BaseException:
    """What went wrong, unwrapped from the exception groups of task groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
