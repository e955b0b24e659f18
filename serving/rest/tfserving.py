"""TensorFlow Serving's REST API: predict, classify, regress, status and metadata.

Bodies are read by `serving.tensor_json` and answers written by `serving.tensor_json_writing`, which the model
server uses as well.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope

from serving import protos, tensor_json, tensor_json_writing
from serving.example_json import parse_examples
from serving.gateway import Gateway
from serving.model_version import ModelVersion
from serving.prediction import ModelRef, RequestContext
from serving.rest.body import Body
from serving.rest.context import request_context
from serving.tensorflow_api import SIGNATURE_DEF, input_types, status_response, their_words

Answer = Callable[[ModelRef, bytes, RequestContext], Awaitable[bytes]]


class TensorFlowServingRest:
    """The API over a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._verbs: dict[str, Answer] = {
            "predict": self._predict,
            "classify": self._classify,
            "regress": self._regress,
        }

    async def infer(self, scope: Scope, receive: Receive, ref: ModelRef, verb: str) -> Response:
        """Answer `:predict` or `:regress`."""
        context = request_context(scope, self._gateway.settings)
        with self._gateway.request(context, ref) as ticket:
            body = await Body(scope, receive, ticket, context, self._gateway.settings).whole()
            return await self.infer_admitted(ref, verb, body, context)

    async def infer_admitted(
        self, ref: ModelRef, verb: str, body: bytes, context: RequestContext
    ) -> Response:
        """Answer a request that was admitted and read already."""
        with their_words(ref):
            return _json(await self._verbs[verb](ref, body, context))

    async def _predict(self, ref: ModelRef, body: bytes, context: RequestContext) -> bytes:
        form = tensor_json.Form.ROW

        def read(model: ModelVersion) -> Any:
            nonlocal form
            parsed = tensor_json.parse_predict(body, lambda name: input_types(model, name))
            form = parsed.form
            return parsed.to_request()

        async def prepare(model: ModelVersion) -> Any:
            return await self._gateway.in_thread(read, model)

        response = await self._gateway.ask("Predict", ref, prepare, context)
        return await self._gateway.in_thread(tensor_json_writing.render_response, response, form)

    async def _classify(self, ref: ModelRef, body: bytes, context: RequestContext) -> bytes:
        response = await self._with_examples("Classify", protos.ClassificationRequest, ref, body, context)
        return await self._gateway.in_thread(tensor_json_writing.render_classifications, response.result)

    async def _regress(self, ref: ModelRef, body: bytes, context: RequestContext) -> bytes:
        response = await self._with_examples("Regress", protos.RegressionRequest, ref, body, context)
        return await self._gateway.in_thread(tensor_json_writing.render_regressions, response.result)

    async def _with_examples(
        self, method: str, request_class: Any, ref: ModelRef, body: bytes, context: RequestContext
    ) -> Any:
        request = request_class()
        await self._gateway.in_thread(parse_examples, body, request)

        async def prepare(_: ModelVersion) -> Any:
            return request

        return await self._gateway.ask(method, ref, prepare, context)

    async def status(self, scope: Scope, ref: ModelRef) -> Response:
        """Answer a GET of a model or of a version; a label is ignored, as in the original."""
        context = request_context(scope, self._gateway.settings)
        with self._gateway.request(context, ref):
            return _json(protos.as_json(status_response(self._gateway.catalog, ref)).encode())

    async def metadata(self, scope: Scope, ref: ModelRef) -> Response:
        """Answer a GET of a version's signatures."""
        context = request_context(scope, self._gateway.settings)
        with self._gateway.request(context, ref), their_words(ref):
            model = await self._gateway.resolve(ref, context)
        spec = protos.ModelSpec(name=model.name)
        spec.version.value = model.version
        signatures = protos.SignatureDefMap()
        for name, signature in model.signatures.items():
            signatures.signature_def[name].CopyFrom(signature)
        return _json(
            f'{{\n"model_spec":{protos.as_json(spec)},\n'
            f'"metadata": {{"{SIGNATURE_DEF}": {protos.as_json(signatures)}}}\n}}\n'.encode()
        )


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
