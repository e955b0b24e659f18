"""What passes through the gateway: which model is asked for, the result of each image, and whose request."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, overload

from serving.errors import InvalidInput, SluiceError
from serving.routing import Arm, Route
from serving.telemetry.tracing import Trace

if TYPE_CHECKING:  # a client does not need it
    import numpy as np

# Versions are int64 in TensorFlow Serving's API: no replica could be asked for a larger one.
MOST_VERSION = 2**63 - 1

_MANY_CLASSES = 2_000


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model as a caller names it. `name` None is the default model, `version` None the routed one.

    `label` stands for a version that is set elsewhere (TensorFlow Serving's version labels); it is empty
    where `version` is given.
    """

    name: str | None = None
    version: int | None = None
    label: str = ""


def version_number(text: str) -> int:
    """A version in decimal digits, an int64 as everywhere; raises InvalidInput if it is none."""
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= MOST_VERSION):
        raise InvalidInput(
            f'"{text[:100]}" is not a version; versions are numbers, such as 1', stage="routing"
        )
    return int(text)


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class of an answer: its label, its index among the model's classes, its probability."""

    label: str
    index: int
    score: float


class Ranking(Sequence[ClassScore]):
    """Many classes of one image, best first; each `ClassScore` is created only when it is accessed.

    An answer may have a quarter of a million of them. Freeing that many objects at once holds everything
    else up, on the event loop as on a thread, which holds the interpreter lock meanwhile.

    Args:
        labels: the labels of all the model's classes.
        indices: the indices of these classes, int [C].
        scores: their probabilities, float32 [C].
    """

    __slots__ = ("_indices", "_labels", "_scores")

    def __init__(self, labels: Sequence[str], indices: np.ndarray, scores: np.ndarray) -> None:
        self._labels = labels
        self._indices = indices
        self._scores = scores

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[ClassScore]:
        for index, score in zip(self._indices.tolist(), self._scores.tolist(), strict=True):
            yield ClassScore(self._labels[index], index, score)

    @overload
    def __getitem__(self, place: int) -> ClassScore: ...

    @overload
    def __getitem__(self, place: slice) -> Ranking: ...

    def __getitem__(self, place: int | slice) -> ClassScore | Ranking:
        if isinstance(place, slice):
            return Ranking(self._labels, self._indices[place], self._scores[place])
        index = int(self._indices[place])
        return ClassScore(self._labels[index], index, float(self._scores[place]))


@dataclass(frozen=True, slots=True)
class ImageResult:
    """The result of one image: its classes, best first, or its error.

    `prediction_id` is what feedback on it names; empty if no feedback is taken.
    """

    classes: Sequence[ClassScore] = ()
    error: SluiceError | None = None
    prediction_id: str = ""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one request: which version of which model gave it, and a result for each image."""

    model: str
    version: int
    results: tuple[ImageResult, ...]

    @property
    def is_large(self) -> bool:
        """Whether it takes so long to serialize that it is to be done off the event loop."""
        return sum(len(each.classes) for each in self.results) > _MANY_CLASSES


@dataclass(slots=True)
class RequestContext:
    """One request's journey.

    Attributes:
        request_id: the caller's `X-Request-ID`, or one made here.
        protocol: `http` or `grpc`, for metrics.
        deadline: when the answer is of no more use, on `time.monotonic`'s clock, in seconds.
        routing_key: keeps a caller on one arm of a rollout, unless it is just the request's id.
        credential: the API key or token as the caller sent it; never shown.
        caller: whose it is, once it is admitted; empty before.
        trace: where this request stands in a trace, the caller's or its own.
        started: when it arrived, on the same clock.
        answered_by: the model and version that it was routed to, once it is; for metrics.
        route: where a rollout sent it; None if the caller named a version, or the model has none.
        copied: a name for each of its images that the candidate gets a copy of, in their order.
        stages_s: seconds spent in each stage of its path so far, by the stage's name.
    """

    request_id: str
    protocol: str
    deadline: float
    routing_key: str = ""
    credential: str | None = field(default=None, repr=False)
    caller: str = ""
    trace: Trace = field(default_factory=Trace)
    started: float = field(default_factory=time.monotonic)
    answered_by: tuple[str, str] | None = None
    route: Route | None = None
    copied: Iterator[str] = field(default_factory=lambda: iter(()))
    stages_s: dict[str, float] = field(default_factory=dict)

    @property
    def arm(self) -> Arm | Literal[""]:
        """Which arm of a rollout answers it; empty if no rollout chose."""
        return "" if self.route is None else self.route.arm

    @property
    def keyed(self) -> bool:
        """Whether the caller gave a routing key of its own."""
        return self.routing_key not in ("", self.request_id)
