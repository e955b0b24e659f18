"""What each REST path does, transport apart: method, path and body in; status, body out.

The paths, bodies and texts are those of the original's `http_rest_api_handler.cc`; this server adds
nothing to them.
"""

from __future__ import annotations

import gzip
import logging
import re
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes

from serving import protos, tensor_json, tensor_json_writing
from serving.errors import InvalidInput, Unimplemented, without_frames
from serving.example_json import parse_examples
from serving.modelserver.manager import Model
from serving.modelserver.predict import DEFAULT_SIGNATURE
from serving.modelserver.services import SIGNATURE_DEF, Services
from serving.modelserver.status import Code, StatusError, from_exception, invalid_argument

logger = logging.getLogger(__name__)

PREDICTION_PATH = re.compile(
    r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?:(classify|regress|predict)", re.IGNORECASE
)
STATUS_PATH = re.compile(
    r"/v1/models(?:/([^/:]+))?(?:/versions/(\d+)|/labels/([^/:]+))?(?:/(metadata))?", re.IGNORECASE
)
MAX_VERSION = 2**63 - 1
MAX_INFLATED_BYTES = 100 * 2**20  # the original's limit; a plain body has none

HTTP_STATUS = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}


def is_api(path: str) -> bool:
    """Whether `path` belongs to this API at all; others are simply not found."""
    return path[:4].lower() == "/v1/"


@dataclass(frozen=True)
class RestApi:
    """The REST API over the services."""

    services: Services

    def answer(self, method: str, path: str, body: bytes, *, is_gzip: bool = False) -> tuple[int, bytes]:
        """The HTTP status and the JSON body for a request; `path` is percent-encoded, `body` perhaps gzip."""
        try:
            return 200, self._dispatch(method, path, inflated(body) if is_gzip else body)
        except StatusError as error:
            status = without_frames(error)
        except Exception as error:
            logger.exception("A call failed unexpectedly")
            status = from_exception(error)
        return HTTP_STATUS[status.code], tensor_json_writing.error_body(status.message)

    def _dispatch(self, method: str, path: str, body: bytes) -> bytes:
        pattern = {"POST": PREDICTION_PATH, "GET": STATUS_PATH}.get(method)
        match = pattern.fullmatch(path) if pattern else None
        malformed = invalid_argument(f"Malformed request: {method} {path}")
        if match is None:
            raise malformed
        name, version, label, what = match.groups()
        if not name:
            raise invalid_argument("Missing model name in request.")
        spec = _model_spec(name, version, label)
        # A path also matches in capitals, but the original then does not recognize these words.
        if method == "GET":
            return self._metadata(spec) if what == "metadata" else self._status(spec)
        infer = {"predict": self._predict, "classify": self._classify, "regress": self._regress}.get(what)
        if infer is None:
            raise malformed
        return self.services.measured(spec.name, what, "REST", lambda: _translated(infer, spec, body))

    def _predict(self, spec: Any, body: bytes) -> bytes:
        model: Model
        with ExitStack() as held:

            def types_of(signature_name: str) -> dict[str, int]:
                # Looked up once: the version for which the body is read must also answer it.
                nonlocal model
                model = held.enter_context(self.services.core.model(spec))
                return _types_of(model, signature_name)

            parsed = tensor_json.parse_predict(body, types_of)
            request = parsed.to_request()
            request.model_spec.MergeFrom(spec)
            response = self.services.predict_with(model, request)
        return tensor_json_writing.render_response(response, parsed.form)

    def _classify(self, spec: Any, body: bytes) -> bytes:
        request = protos.ClassificationRequest(model_spec=spec)
        parse_examples(body, request)
        return tensor_json_writing.render_classifications(self.services.classify(request).result)

    def _regress(self, spec: Any, body: bytes) -> bytes:
        request = protos.RegressionRequest(model_spec=spec)
        parse_examples(body, request)
        return tensor_json_writing.render_regressions(self.services.regress(request).result)

    def _status(self, spec: Any) -> bytes:
        return protos.as_json(
            self.services.get_model_status(protos.GetModelStatusRequest(model_spec=spec))
        ).encode()

    def _metadata(self, spec: Any) -> bytes:
        request = protos.GetModelMetadataRequest(model_spec=spec, metadata_field=[SIGNATURE_DEF])
        response = self.services.get_model_metadata(request)
        signatures = protos.SignatureDefMap()
        response.metadata[SIGNATURE_DEF].Unpack(signatures)
        return (
            f'{{\n"model_spec":{protos.as_json(response.model_spec)},\n'
            f'"metadata": {{"signature_def": {protos.as_json(signatures)}}}\n}}\n'
        ).encode()


def _translated(infer: Callable[[Any, bytes], bytes], spec: Any, body: bytes) -> bytes:
    """What `infer` answers; its errors of `serving.errors` are raised as StatusError."""
    try:
        return infer(spec, body)
    except InvalidInput as error:
        raise invalid_argument(error.message) from error
    except Unimplemented as error:
        raise StatusError(Code.UNIMPLEMENTED, error.message) from error


def inflated(body: bytes) -> bytes:
    """The content of a gzip file; raises StatusError if it is not one, or over `MAX_INFLATED_BYTES`."""
    try:
        content = gzip.GzipFile(fileobj=BytesIO(body)).read(MAX_INFLATED_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise invalid_argument(f"Failed to uncompress the gzipped body: {error}") from error
    if len(content) > MAX_INFLATED_BYTES:
        raise invalid_argument(
            f"Failed to uncompress the gzipped body: it holds more than {MAX_INFLATED_BYTES} bytes"
        )
    return content


def _types_of(model: Model, signature_name: str) -> dict[str, int]:
    """Alias -> `tensorflow.DataType` of a signature's inputs; raises StatusError if it is not there."""
    name = signature_name or DEFAULT_SIGNATURE
    signature = model.servable.signatures.get(name)
    if signature is None:
        raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
    return {alias: info.dtype for alias, info in signature.inputs.items()}


def _model_spec(name: str, version: str | None, label: str | None) -> Any:
    spec = protos.ModelSpec(name=_decoded(name, "name"))
    if version is not None:
        digits = version.lstrip("0") or "0"
        if len(digits) > len(str(MAX_VERSION)) or int(digits) > MAX_VERSION:
            raise invalid_argument(f"Failed to convert version: {version} to numeric.")
        spec.version.value = int(digits)
    if label is not None:
        spec.version_label = _decoded(label, "version label")
    return spec


def _decoded(text: str, what: str) -> str:
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError as error:
        raise invalid_argument(f"Failed to decode model {what}:{text}") from error
