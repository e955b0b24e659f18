"""The OpenAPI descriptions of TensorFlow Serving's and the Open Inference Protocol's operations.

Their bodies are described as far as both protocols fix them; which tensors there are depends on the model.
"""

from __future__ import annotations

from typing import Any

from serving.rest.infer_body import HEADER_LENGTH
from serving.rest.uploads import JSON, OCTET_STREAM

PARAMETERS: dict[str, dict[str, Any]] = {
    "model": {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}},
    "version": {
        "name": "version",
        "in": "path",
        "required": True,
        "schema": {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
    },
    "label": {"name": "label", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}},
}
TIMEOUT = {
    "name": "X-Request-Timeout",
    "in": "header",
    "description": "Seconds after which the answer is of no more use.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}
PLAIN_ERROR = {"$ref": "#/components/schemas/Error"}
_STATUSES = {
    "400": "The request is not valid",
    "401": "The API key is missing or not valid",
    "403": "The API key does not allow this",
    "404": "No such model, version or label",
    "409": "A replica says that something else was changed meanwhile",
    "413": "The body is too large",
    "415": "The content encoding is not taken",
    "429": "This caller is over its limits; see Retry-After",
    "500": "A fault of the model",
    "501": "The model has types, or its replica lacks methods, that this would need",
    "503": "No replica can answer now, or the gateway is full; see Retry-After",
    "504": "It could not be done in time",
}
_TENSOR = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "parameters": {"type": "object"},
        "data": {"type": "array"},
    },
}
DOOR_SCHEMAS: dict[str, Any] = {
    "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    "Predictions": {
        "type": "object",
        "description": "`predictions` in answer to `instances`, `outputs` in answer to `inputs`.",
        "minProperties": 1,
        "maxProperties": 1,
        "properties": {"predictions": {"type": "array"}, "outputs": {}},
    },
    "Results": {
        "type": "object",
        "required": ["results"],
        "properties": {"results": {"type": "array"}},
    },
    "ModelStatus": {
        "type": "object",
        "required": ["model_version_status"],
        "properties": {"model_version_status": {"type": "array"}},
    },
    "ModelSignatures": {
        "type": "object",
        "required": ["model_spec", "metadata"],
        "properties": {"model_spec": {"type": "object"}, "metadata": {"type": "object"}},
    },
    "InferRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "minItems": 1, "items": _TENSOR},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
                },
            },
        },
    },
    "InferResponse": {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": _TENSOR},
        },
    },
    "ModelMetadata": {
        "type": "object",
        "required": ["name", "versions", "platform", "inputs", "outputs"],
        "properties": {
            "name": {"type": "string"},
            "versions": {"type": "array", "items": {"type": "string"}},
            "platform": {"type": "string"},
            "inputs": {"type": "array", "items": _TENSOR},
            "outputs": {"type": "array", "items": _TENSOR},
        },
    },
    "Ready": {"type": "object", "required": ["ready"], "properties": {"ready": {"type": "boolean"}}},
    "Live": {"type": "object", "required": ["live"], "properties": {"live": {"type": "boolean"}}},
    "Index": {"type": "array", "items": {"type": "object", "required": ["name", "version", "state"]}},
    "Object": {"type": "object"},
}
_PREDICT = {
    "type": "object",
    "description": "Row form (`instances`) or column form (`inputs`).",
    "properties": {
        "signature_name": {"type": "string"},
        "instances": {"type": "array", "minItems": 1},
        "inputs": {},
    },
    "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
}
EXAMPLES = {
    "type": "object",
    "description": "TensorFlow Serving's: `tf.Example`s as objects of features.",
    "properties": {
        "signature_name": {"type": "string"},
        "examples": {"type": "array", "minItems": 1, "items": {"type": "object"}},
        "context": {"type": "object"},
    },
    "required": ["examples"],
}
_SUFFIXES = ("", "/versions/{version}", "/labels/{label}")


def door_paths() -> dict[str, Any]:
    """Every path of both protocols with its operations; `:classify` is among the image API's."""
    paths: dict[str, Any] = {}
    for suffix in _SUFFIXES:
        model = "/v1/models/{model}" + suffix
        paths[f"{model}:predict"] = _post("tensorflow-serving", "predict", "Predictions", _PREDICT, model)
        paths[f"{model}:regress"] = _post("tensorflow-serving", "regress", "Results", EXAMPLES, model)
        paths[model] = _get("tensorflow-serving", "status", "ModelStatus", model)
        paths[f"{model}/metadata"] = _get("tensorflow-serving", "signatures", "ModelSignatures", model)
    for suffix in _SUFFIXES[:2]:
        model = "/v2/models/{model}" + suffix
        infer = {"$ref": "#/components/schemas/InferRequest"}
        paths[model] = _get("open-inference", "metadata", "ModelMetadata", model)
        paths[f"{model}/ready"] = _get("open-inference", "ready", "Ready", model)
        paths[f"{model}/config"] = _get("open-inference", "config", "Object", model)
        paths[f"{model}/infer"] = _with_bytes(_post("open-inference", "infer", "InferResponse", infer, model))
    paths["/v2"] = _get("open-inference", "server", "Object", "")
    paths["/v2/health/live"] = _get("open-inference", "live", "Live", "")
    paths["/v2/health/ready"] = _get("open-inference", "ready", "Ready", "")
    index = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
    paths["/v2/repository/index"] = _post("open-inference", "index", "Index", index, "")
    paths["/v2/repository/index"]["post"]["requestBody"]["required"] = False
    return paths


def _get(tag: str, what: str, schema: str, model: str) -> dict[str, Any]:
    operation = _operation(tag, what, schema, model)
    if model:  # the others answer at once
        operation["parameters"].append(TIMEOUT)
    return {"get": operation}


def _post(tag: str, what: str, schema: str, body: dict[str, Any], model: str) -> dict[str, Any]:
    operation = _operation(tag, what, schema, model)
    operation["parameters"].append(TIMEOUT)
    operation["requestBody"] = {"required": True, "content": {JSON: {"schema": body}}}
    return {"post": operation}


def _with_bytes(path: dict[str, Any]) -> dict[str, Any]:
    """The path with what Triton's binary tensor data extension adds, both ways."""
    binary = {"schema": {"type": "string", "format": "binary", "description": "JSON, then tensors' bytes."}}
    length = {"description": "How long the JSON is.", "schema": {"type": "integer", "minimum": 0}}
    operation = path["post"]
    operation["parameters"].append({"name": HEADER_LENGTH, "in": "header", **length})
    operation["requestBody"]["content"][OCTET_STREAM] = binary
    operation["responses"]["200"]["content"][OCTET_STREAM] = binary
    operation["responses"]["200"]["headers"] = {HEADER_LENGTH: length}
    return path


def _operation(tag: str, what: str, schema: str, model: str) -> dict[str, Any]:
    names = [name for name in PARAMETERS if f"{{{name}}}" in model]
    unready = {"503": {"description": "Not ready", "content": _content(schema)}} if schema == "Ready" else {}
    refusals = {status: _error(text) for status, text in _STATUSES.items()}
    return {
        "tags": [tag],
        "operationId": "_".join((tag.replace("-", "_"), what, *names)),
        "summary": f"{what.capitalize()}" + "".join(f" by {name}" for name in names),
        "parameters": [PARAMETERS[name] for name in names],
        "responses": {"200": {"description": "Done", "content": _content(schema)}, **refusals, **unready},
    }


def _content(schema: str) -> dict[str, Any]:
    return {JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _error(text: str) -> dict[str, Any]:
    return {"description": text, "content": {JSON: {"schema": PLAIN_ERROR}}}
