"""What one writes by hand in an afternoon: FastAPI, Pillow, a thread pool, the model in the same process.

`python -m tests.bench.fastapi_baseline FOLDER_OF_A_SAVED_MODEL SIDE`; prints its port.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from tests.bench.peers.classifier import Classifier, decode

THREADS = 4  # FastAPI's own pool has 40: as many ResNet-50s at once want more memory than there is


def build(classifier: Classifier, side: int) -> FastAPI:
    """The app."""
    app, pool = FastAPI(), ThreadPoolExecutor(THREADS)

    def classify(body: bytes) -> list[dict[str, Any]]:
        return classifier.classify(decode(body, side)[None])[0]

    @app.post("/classify")
    async def post(request: Request) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        return {"classes": await loop.run_in_executor(pool, classify, await request.body())}

    return app


def main() -> None:
    """Serve until killed."""
    folder, side = sys.argv[1:]
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    app = build(Classifier(folder), int(side))
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listener])


if __name__ == "__main__":
    main()
