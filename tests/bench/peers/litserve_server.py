"""LitServe as its documentation serves images: a form's file, batches by a short wait.

`python -m tests.bench.peers.litserve_server SAVED_MODEL SIDE PORT`. One worker, one API server.
"""

import sys
from typing import Any

import litserve
import numpy as np

from tests.bench.peers.classifier import Classifier, decode


class Resnet(litserve.LitAPI):  # type: ignore[misc]
    """The hooks that LitServe calls in its worker."""

    def setup(self, device: str) -> None:
        self.folder, self.side = sys.argv[1], int(sys.argv[2])
        self.classifier = Classifier(self.folder)

    def decode_request(self, request: litserve.Request) -> np.ndarray:
        return decode(request["photo"].file.read(), self.side)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, x: np.ndarray) -> list[list[dict[str, Any]]]:
        return self.classifier.classify(x)

    def unbatch(self, output: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        return output

    def encode_response(self, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {"classes": output}


if __name__ == "__main__":
    api = Resnet(max_batch_size=32, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[3]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )
