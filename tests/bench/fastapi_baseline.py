"""What one writes by hand in an afternoon: FastAPI, Pillow, a thread pool, the model in the same process.

`python -m tests.bench.fastapi_baseline FOLDER_OF_A_SAVED_MODEL SIDE`; prints its port.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from tests.bench.peers.classifier import Classifier, decode


def build(classifier: Classifier, side: int) -> FastAPI:
    """The app."""
    app = FastAPI()

    def classify(body: bytes) -> list[dict[str, Any]]:
        return classifier.classify(decode(body, side)[None])[0]

    @app.post("/classify")
    async def post(request: Request) -> dict[str, Any]:
        return {"classes": await run_in_threadpool(classify, await request.body())}

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
