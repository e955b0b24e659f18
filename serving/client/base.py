"""What the clients of all protocols offer; each protocol adds how a request is made, and sent once."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from serving.client.retries import Retries, repeated, repeated_async
from serving.client.wire import DEFAULT_TIMEOUT_S, Image, Question
from serving.errors import InvalidInput
from serving.prediction import Prediction

Request = TypeVar("Request")


class BlockingClient(ABC, Generic[Request]):
    """A client for threads. Use as a context manager, or `close` it.

    Args:
        retries: when to send again.
    """

    def __init__(self, retries: Retries | None) -> None:
        self._retries = retries or Retries()

    @abstractmethod
    def _request(self, question: Question) -> Request:
        """The request, ready to be sent as often as it takes."""

    @abstractmethod
    def _send(self, request: Request, timeout_s: float) -> Prediction:
        """Send it once; raises SluiceErrors."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""

    def classify(
        self,
        images: Image | Sequence[Image],
        *,
        model: str | None = None,
        version: int | None = None,
        label: str | None = None,
        top_k: int | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Prediction:
        """Classify one image or several, with the default model or another, the routed version or another.

        Args:
            images: encoded files.
            model: the model's name; None: the gateway's default.
            version: which version of it; None: the one that the gateway routes to.
            label: a label that stands for a version, instead of one.
            top_k: how many classes for each image; None: the gateway's default.
            timeout_s: how long to wait in all, retries included.

        Raises:
            SluiceError: one of the kinds of `serving.errors`.
            OSError: a file cannot be read.
        """
        request = self._request(Question.of(images, model, version, label, top_k))
        return repeated(self._retries, timeout_s, lambda left_s: self._send(request, left_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncioClient(ABC, Generic[Request]):
    """The same for asyncio. Use as an async context manager, or `aclose` it.

    Args:
        retries: when to send again.
    """

    def __init__(self, retries: Retries | None) -> None:
        self._retries = retries or Retries()
        self._loop: asyncio.AbstractEventLoop | None = None

    @abstractmethod
    def _request(self, question: Question) -> Request:
        """The request, ready to be sent as often as it takes."""

    @abstractmethod
    async def _send(self, request: Request, timeout_s: float) -> Prediction:
        """Send it once; raises SluiceErrors."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connections."""

    async def classify(
        self,
        images: Image | Sequence[Image],
        *,
        model: str | None = None,
        version: int | None = None,
        label: str | None = None,
        top_k: int | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Prediction:
        """Classify images; see `BlockingClient.classify`.

        Raises:
            InvalidInput: the client was used in another event loop before.
        """
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if self._loop is not loop:
            raise InvalidInput(
                "this client was used in another event loop, to which its connections belong; "
                "make one in each, or use a blocking client"
            )

        def prepare() -> Request:  # it may read files
            return self._request(Question.of(images, model, version, label, top_k))

        request: Any = await asyncio.to_thread(prepare)
        return await repeated_async(self._retries, timeout_s, lambda left_s: self._send(request, left_s))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
