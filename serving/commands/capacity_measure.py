"""Measure how long one replica takes for batches of several sizes, over its own API."""

from __future__ import annotations

import statistics
import time

import numpy as np

from serving import protos, tensors
from serving.backends.tfserving import TensorFlowServing
from serving.errors import NotFound
from serving.model_version import CLASSIFY_SIGNATURE, read_image_signature

BATCHES = (1, 2, 4, 8, 16, 32, 64)
# Of each size one call is thrown away (a size that is new to the replica may compile kernels).
CALLS = 15
CALL_TIMEOUT_S = 60.0


async def measure(address: str, model: str) -> dict[int, float]:
    """The median latency in seconds of batches of random images, by size, one call at a time.

    Raises:
        NotFound: the replica has no available version of the model that takes images.
        SluiceError: the replica cannot be reached, or refuses.
    """
    api = TensorFlowServing(address)
    try:
        states = await api.status(model, CALL_TIMEOUT_S)
        available = [version for version, status in states.items() if status.state == "AVAILABLE"]
        if not available:
            raise NotFound(f'{address} has no version of model "{model}" available')
        return await _measure_version(api, model, max(available))
    finally:
        await api.close()


async def _measure_version(api: TensorFlowServing, model: str, version: int) -> dict[int, float]:
    signatures = await api.signatures(model, version, CALL_TIMEOUT_S)
    image = read_image_signature(signatures)
    if image is None:
        raise NotFound(f'version {version} of model "{model}" takes no images as uint8 [N,H,W,C]')
    rng = np.random.default_rng(0)
    shape = (image.spec.height, image.spec.width, image.spec.channels)
    found: dict[int, float] = {}
    for batch in BATCHES:
        request = protos.PredictRequest(output_filter=[image.output_name])
        request.model_spec.name = model
        request.model_spec.version.value = version
        request.model_spec.signature_name = CLASSIFY_SIGNATURE
        pixels = rng.integers(0, 256, (batch, *shape), np.uint8)
        request.inputs[image.input_name].CopyFrom(tensors.to_proto(pixels))
        spent = [await _time_one(api, request) for _ in range(CALLS + 1)]
        found[batch] = statistics.median(spent[1:])
    return found


async def _time_one(api: TensorFlowServing, request: object) -> float:
    started = time.perf_counter()
    await api.predict(request, CALL_TIMEOUT_S)
    return time.perf_counter() - started
