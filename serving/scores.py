"""Turns images into a replica's request, and its answer into scores and classes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from serving import protos, tensors
from serving.errors import Internal, InvalidInput
from serving.model_version import CLASSIFY_SIGNATURE, ImageSignature, ModelVersion
from serving.prediction import ClassScore, Ranking

# Up to this many classes Python sorts faster: numpy lets a decoding thread have the interpreter lock.
_FEW_CLASSES = 64
# Ranking the classes of this many scores takes a millisecond or less.
_CLASSES_A_TURN = 2_000


def classify_request(model: ModelVersion, images: Sequence[np.ndarray]) -> tuple[ImageSignature, Any]:
    """The PredictRequest that has a version classify images of its shape, and how to read the answer."""
    image = model.require_image()
    request = protos.PredictRequest(output_filter=[image.output_name])
    request.model_spec.name = model.name
    request.model_spec.version.value = model.version
    request.model_spec.signature_name = CLASSIFY_SIGNATURE
    _fill(request.inputs[image.input_name], images)
    return image, request


def padded(images: list[np.ndarray], sizes: Sequence[int]) -> list[np.ndarray]:
    """The images, the last of them repeated until there are as many as the next of `sizes`."""
    size = min((size for size in sizes if size >= len(images)), default=len(images))
    return images + images[-1:] * (size - len(images))


def _fill(proto: Any, images: Sequence[np.ndarray]) -> None:
    """Write images of one shape, uint8 [H,W,C], into a TensorProto as [N,H,W,C], with one copy in Python."""
    proto.dtype = tensors.data_type_of(images[0].dtype)
    for size in (len(images), *images[0].shape):
        proto.tensor_shape.dim.add(size=size)
    proto.tensor_content = b"".join(image.data for image in images)


def read_scores(response: Any, name: str, shape: tuple[int, int]) -> np.ndarray:
    """The output `name` of a PredictResponse, of this shape; raises Internal if it is something else.

    Rows without numbers are left to `best`: one image must not cost the others in its batch their answers.
    """
    if name not in response.outputs:
        raise Internal(f'the replica\'s answer has no output "{name}"', stage="backend")
    try:
        scores = tensors.from_proto(response.outputs[name])
    except InvalidInput as error:
        raise Internal(
            f'the replica\'s output "{name}" is malformed: {error.message}', stage="backend"
        ) from error
    if scores.shape != shape or scores.dtype != np.float32:
        raise Internal(
            f'the replica\'s output "{name}" is {_kind(scores.dtype)} {list(scores.shape)};'
            f" float32 {list(shape)} was due",
            stage="backend",
        )
    return scores


def _kind(dtype: np.dtype[Any]) -> str:
    return "string" if dtype.hasobject else dtype.name


def with_numbers(scores: np.ndarray) -> np.ndarray:
    """Which rows of `scores`, float32 [N,K], are all finite numbers: bool [N]."""
    if math.isfinite(scores.sum()):
        return np.ones(len(scores), bool)
    found: np.ndarray = np.isfinite(scores).all(axis=1)
    return found


def no_numbers() -> Internal:
    """The error for scores that are not all finite: none of them is the best."""
    return Internal("the model gave a score that is not a finite number", stage="backend")


def labels_of(rows: Sequence[np.ndarray], labels: Sequence[str]) -> list[str]:
    """The label of the best class of each row, float32 [K]; raises Internal if one is not all finite."""
    if not with_numbers(np.asarray(rows)).all():
        raise no_numbers()
    return [labels[int(row.argmax())] for row in rows]


def checked_top_k(top_k: int | None, model: ModelVersion, default: int) -> int:
    """How many classes to return; raises InvalidInput if the model has fewer."""
    classes = model.require_image().classes
    if top_k is None:
        return min(default, classes)
    if not 1 <= top_k <= classes:
        raise InvalidInput(
            f'top_k is {top_k}; model "{model.name}" has {classes} classes, so it is 1 to {classes}',
            stage="routing",
        )
    return top_k


async def best_of_each(
    rows: Sequence[np.ndarray], labels: Sequence[str], count: int
) -> list[Sequence[ClassScore] | Internal]:
    """`best` of each of `rows`, or its error; the event loop gets to its other work in between."""
    found: list[Sequence[ClassScore] | Internal] = []
    classes = 0
    for scores in rows:
        if classes >= _CLASSES_A_TURN:
            classes = 0
            await asyncio.sleep(0)
        try:
            found.append(best(scores, labels, count))
        except Internal as error:
            found.append(error)
        classes += len(scores)
    return found


def best(scores: np.ndarray, labels: Sequence[str], count: int) -> Sequence[ClassScore]:
    """The `count` best of `scores`, float32 [K], best first; of equals the lower index first.

    Raises:
        Internal: a score is not a finite number, so none is the best.
    """
    if len(scores) > _FEW_CLASSES:
        return _best_of_many(scores, labels, count)
    values: list[float] = scores.tolist()
    if not math.isfinite(sum(values)):
        raise no_numbers()
    order = sorted(range(len(values)), key=lambda index: -values[index])[:count]
    return tuple(ClassScore(labels[index], index, values[index]) for index in order)


def _best_of_many(scores: np.ndarray, labels: Sequence[str], count: int) -> Sequence[ClassScore]:
    if not np.isfinite(scores).all():
        raise no_numbers()
    order = np.argsort(-scores, kind="stable")[:count]
    ranking = Ranking(labels, order, scores[order])
    return ranking if count > _FEW_CLASSES else tuple(ranking)
