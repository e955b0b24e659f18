"""PyTriton as its TensorFlow example binds a model: Triton's HTTP front and dynamic batcher, and one Python
function, which decodes a batch's photographs one after the other and runs the model.

`python -m tests.bench.peers.pytriton_server SAVED_MODEL SIDE PORT`.
"""

from __future__ import annotations

import sys

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from tests.bench.peers.classifier import TOP, Classifier, decode


def main() -> None:
    """Serve until killed."""
    folder, side, port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    classifier = Classifier(folder)

    @batch  # type: ignore[untyped-decorator]
    def classify(photo: np.ndarray) -> dict[str, np.ndarray]:
        scores = classifier.scores(np.stack([decode(body, side) for body in photo[:, 0]]))
        index = np.argsort(-scores, axis=1)[:, :TOP]
        return {"index": index, "score": np.take_along_axis(scores, index, axis=1)}

    config = TritonConfig(http_address="127.0.0.1", http_port=port, allow_grpc=False, allow_metrics=False)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="resnet",
            infer_func=classify,
            inputs=[Tensor(name="photo", dtype=bytes, shape=(1,))],
            outputs=[
                Tensor(name="index", dtype=np.int64, shape=(TOP,)),
                Tensor(name="score", dtype=np.float32, shape=(TOP,)),
            ],
            config=ModelConfig(max_batch_size=32, batcher=DynamicBatcher()),
        )
        triton.serve()


if __name__ == "__main__":
    main()
