"""KServe's custom predictor, as its documentation writes one, with the photograph as the request's body.

`python -m tests.bench.peers.kserve_server SAVED_MODEL SIDE PORT`. KServe's batcher is a program beside the
server in a cluster's pod and no part of the package, so requests are computed one by one, in threads, as
asynchronous hooks allow.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import kserve
import numpy as np

from tests.bench.peers.classifier import Classifier, decode


class Resnet(kserve.Model):  # type: ignore[misc]
    """The hooks that KServe calls for a request."""

    def __init__(self, folder: str, side: int) -> None:
        super().__init__("resnet")
        self.side = side
        self.classifier = Classifier(folder)
        self.ready = True

    async def preprocess(self, payload: bytes, headers: dict[str, str] | None = None) -> np.ndarray:
        return (await asyncio.to_thread(decode, payload, self.side))[None]

    async def predict(self, images: np.ndarray, headers: dict[str, str] | None = None) -> dict[str, Any]:
        return {"predictions": await asyncio.to_thread(self.classifier.classify, images)}


if __name__ == "__main__":
    model = Resnet(sys.argv[1], int(sys.argv[2]))
    kserve.ModelServer(http_port=int(sys.argv[3]), enable_grpc=False, workers=1).start([model])
