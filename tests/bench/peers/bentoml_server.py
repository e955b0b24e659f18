"""BentoML as its documentation serves images: a batchable API over a list of pictures, which it opens.

`python -m tests.bench.peers.bentoml_server SAVED_MODEL SIDE PORT`. One worker.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
from PIL import Image as PillowImage

from tests.bench.peers.classifier import Classifier


@bentoml.service(workers=1, traffic={"timeout": 60})
class Resnet:
    """The service."""

    def __init__(self) -> None:
        self.side = int(os.environ["BENCH_SIDE"])
        self.classifier = Classifier(os.environ["BENCH_FOLDER"])

    @bentoml.api(batchable=True, max_batch_size=32)  # type: ignore[untyped-decorator]
    def classify(self, photos: list[PillowImage.Image]) -> list[list[dict[str, Any]]]:
        """The best classes of each."""
        size, how = (self.side, self.side), PillowImage.Resampling.BILINEAR
        return self.classifier.classify(
            np.stack([np.asarray(each.convert("RGB").resize(size, how)) for each in photos])
        )


if __name__ == "__main__":
    folder, side, port = sys.argv[1:]
    os.environ.update(BENCH_FOLDER=folder, BENCH_SIDE=side, BENTOML_DO_NOT_TRACK="True")
    program = str(Path(sys.executable).with_name("bentoml"))
    service = "tests.bench.peers.bentoml_server:Resnet"
    os.execv(program, [program, "serve", service, "--host", "127.0.0.1", "--port", port, "--quiet"])
