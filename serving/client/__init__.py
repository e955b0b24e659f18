"""A typed client of a Sluice gateway, over HTTP or gRPC, sync or async.

    from pathlib import Path

    from serving.client import Client

    with Client("http://127.0.0.1:8080") as client:
        prediction = client.classify(Path("seven.png"), model="digits", top_k=3)
        print(prediction.version, prediction.results[0].classes[0].label)

`AsyncClient`, `GrpcClient` and `AsyncGrpcClient` take the same arguments. What fails is raised as one of
the kinds of `serving.errors`, the same over either protocol; an image that could not be read is a result
with an `error` among those of the others, and raised if there are no others. Requests that may succeed
later are retried, when the gateway says or after a growing pause; see `Retries`. Threads may share a
blocking client; an async one belongs to one event loop.
"""

from serving.client.http import AsyncClient, Client
from serving.client.retries import Retries
from serving.client.rpc import AsyncGrpcClient, GrpcClient
from serving.client.wire import Image
from serving.prediction import ClassScore, ImageResult, Prediction

__all__ = [
    "AsyncClient",
    "AsyncGrpcClient",
    "ClassScore",
    "Client",
    "GrpcClient",
    "Image",
    "ImageResult",
    "Prediction",
    "Retries",
]
