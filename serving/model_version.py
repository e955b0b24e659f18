"""What is known of one version of a model, and how it classifies images: read from its signatures. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serving import tensors
from serving.errors import FailedPrecondition
from serving.images import ImageSpec

CLASSIFY_SIGNATURE = "serving_default"


@dataclass(frozen=True, slots=True)
class ImageSignature:
    """The names of the tensors of `serving_default`, if it takes images and gives scores."""

    input_name: str
    output_name: str
    spec: ImageSpec
    classes: int


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a model, as far as classifying goes.

    Attributes:
        signatures: all its signatures: name -> SignatureDef.
        image: how to classify with it; None if it does not take images as uint8 [N,H,W,C].
        labels: a label for each class; the classes' indices if the model does not say.
        card: what the model says about itself; empty if it says nothing.
        described: whether labels and card are final; False while asking for them fails.
    """

    name: str
    version: int
    signatures: Mapping[str, Any]
    image: ImageSignature | None
    labels: tuple[str, ...]
    card: Mapping[str, Any] = field(default_factory=dict)
    described: bool = True

    def require_image(self) -> ImageSignature:
        """How to classify with it; raises FailedPrecondition if it is not an image classifier."""
        if self.image is None:
            raise FailedPrecondition(
                f'version {self.version} of model "{self.name}" cannot classify images: its signature '
                f"{CLASSIFY_SIGNATURE} does not take one uint8 [N,H,W,C] with fixed H, W and 1 or 3 "
                "channels and give one float [N,K]",
                stage="routing",
            )
        return self.image


def read_image_signature(signatures: Mapping[str, Any]) -> ImageSignature | None:
    """How to classify with a model of these signatures (name -> SignatureDef); None if it takes no images."""
    found = signatures.get(CLASSIFY_SIGNATURE)
    if found is None or len(found.inputs) != 1 or not found.outputs:
        return None
    (input_name, taken), *_ = found.inputs.items()
    output_name = "scores" if "scores" in found.outputs else next(iter(found.outputs))
    given = found.outputs[output_name]
    shape = [dim.size for dim in taken.tensor_shape.dim]
    scores = [dim.size for dim in given.tensor_shape.dim]
    takes_images = taken.dtype == tensors.data_type_of(np.dtype(np.uint8)) and len(shape) == 4
    if not takes_images or min(shape[1:]) < 1 or shape[3] not in (1, 3):
        return None
    if given.dtype != tensors.data_type_of(np.dtype(np.float32)) or len(scores) != 2 or scores[1] < 1:
        return None
    return ImageSignature(input_name, output_name, ImageSpec(*shape[1:]), scores[1])
