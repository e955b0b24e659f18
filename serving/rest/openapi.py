"""What cannot be derived from plain ASGI routes for OpenAPI: the doors' operations, with real examples."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serving.images import CONTENT_TYPES
from serving.rest.classify import NDJSON
from serving.rest.errors import PROBLEM_JSON
from serving.rest.openapi_doors import DOOR_SCHEMAS, EXAMPLES, PARAMETERS, PLAIN_ERROR, TIMEOUT, door_paths
from serving.rest.uploads import JSON, MULTIPART, OCTET_STREAM

CLASSIFY_PATHS = (
    "/v1/classify",
    "/v1/models/{model}:classify",
    "/v1/models/{model}/versions/{version}:classify",
    "/v1/models/{model}/labels/{label}:classify",
)
EXAMPLE_ANSWER = {
    "model": "digits",
    "version": 1,
    "results": [
        {
            "classes": [
                {"label": "7", "index": 7, "score": 0.9993},
                {"label": "9", "index": 9, "score": 0.0004},
            ]
        }
    ],
}
EXAMPLE_PROBLEM = {
    "type": "urn:sluice:problem:not-found",
    "title": "Not found",
    "status": 404,
    "detail": 'model "resent" is not configured; there are: digits',
    "retryable": False,
    "request_id": "3f0c6b7c9ad94b0a8f0f4f0f8d2f5a11",
    "stage": "routing",
}

_CLASS = {
    "type": "object",
    "required": ["label", "index", "score"],
    "properties": {
        "label": {"type": "string"},
        "index": {"type": "integer", "minimum": 0},
        "score": {"type": "number", "description": "What the model gives; most give probabilities."},
    },
}
_ERROR = {
    "type": "object",
    "required": ["type", "detail"],
    "properties": {"type": {"type": "string"}, "detail": {"type": "string"}},
}
_SCHEMAS = {
    "Prediction": {
        "type": "object",
        "required": ["model", "version", "results"],
        "properties": {
            "model": {"type": "string"},
            "version": {"type": "integer", "description": "The version that gave the answer."},
            "results": {
                "type": "array",
                "description": "One for each image, in order: its classes, best first, or its error.",
                "items": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "string"},
                        "prediction_id": {
                            "type": "string",
                            "description": "What feedback names; where a gateway takes any.",
                        },
                        "classes": {"type": "array", "items": _CLASS},
                        "error": _ERROR,
                    },
                },
            },
        },
    },
    "Problem": {
        "type": "object",
        "description": "RFC 9457",
        "required": ["type", "title", "status", "detail", "retryable", "request_id"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "retryable": {"type": "boolean"},
            "request_id": {"type": "string"},
            "stage": {"type": "string"},
        },
    },
}
_AT_LEAST_ONE = {"type": "integer", "minimum": 1}
_TOP_K = {
    "name": "top_k",
    "in": "query",
    "description": "How many classes to return for each image; at most as many as the model has. The only "
    "parameter of a query with images; others are refused.",
    "schema": _AT_LEAST_ONE,
}
_FORM = {
    "type": "object",
    "required": ["images"],
    "additionalProperties": False,
    "properties": {
        "images": {
            "type": "array",
            "minItems": 1,
            "description": "File parts; those of other names are images, too.",
            "items": {"type": "string", "format": "binary"},
        },
        "top_k": {
            **_AT_LEAST_ONE,
            "description": "As in the query, where both say it. The only text field; others are refused.",
        },
    },
}
_JSON_IMAGES = {
    "type": "object",
    "required": ["images"],
    "additionalProperties": False,
    "properties": {
        "images": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["b64"],
                "additionalProperties": False,
                "properties": {"b64": {"type": "string", "format": "byte"}},
            },
        },
        "top_k": {**_AT_LEAST_ONE, "description": "As in the query, where both say it."},
    },
}
_STATUSES = {
    "400": "The request, or its image, is not valid",
    "401": "The API key is missing or not valid",
    "403": "The API key does not allow this",
    "404": "No such model or version",
    "413": "The body or the image is too large",
    "415": "The content type is not supported",
    "429": "This caller is over its limits; see Retry-After",
    "500": "A fault of the model",
    "503": "No replica can answer now, or the gateway is full; see Retry-After",
    "504": "It could not be done in time",
}


def document(app: FastAPI) -> dict[str, Any]:
    """The whole OpenAPI document of `app`, the doors' operations included."""
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for path in CLASSIFY_PATHS:
        found["paths"][path] = {"post": _operation(path)}
    found["paths"] |= door_paths()
    components = found.setdefault("components", {})
    components.setdefault("schemas", {}).update(_SCHEMAS | DOOR_SCHEMAS)
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key or a token."},
        "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    # The empty one: a gateway without keys requires none.
    found["security"] = [{}, {"bearer": []}, {"apiKey": []}]
    _give_problems(found["paths"])
    return found


def _give_problems(paths: dict[str, Any]) -> None:
    """Describe the refusals of FastAPI's own operations as problem documents, like those of all others."""
    for path, operations in paths.items():
        for operation in operations.values():
            answers = operation["responses"]
            answers.pop("422", None)  # FastAPI's own; here it is a 400
            if path.startswith("/v1/") and "default" not in answers and "400" not in answers:
                answers |= {status: _problem(text) for status, text in _STATUSES.items()}
            if path.startswith("/v1/rollouts"):
                answers["409"] = _problem("The rollout is not where that makes sense")


def _operation(path: str) -> dict[str, Any]:
    names = [name for name in ("model", "version", "label") if f"{{{name}}}" in path]
    binary = {"schema": {"type": "string", "format": "binary"}}
    content: dict[str, Any] = dict.fromkeys((*CONTENT_TYPES, OCTET_STREAM), binary)
    content[MULTIPART] = {"schema": _FORM}
    # JSON without images is TensorFlow Serving's classify, as are its answer and its refusals.
    content[JSON] = {"schema": {"oneOf": [_JSON_IMAGES, EXAMPLES]}}
    answers = [{"$ref": f"#/components/schemas/{name}"} for name in ("Prediction", "Results")]
    answer = {
        "description": "The classes of each image; with `Accept: application/x-ndjson` a line for each",
        "content": {
            JSON: {"schema": {"anyOf": answers}, "example": EXAMPLE_ANSWER},
            NDJSON: {"schema": {"type": "string"}},
        },
    }
    refusals = {status: _problem(text) for status, text in _STATUSES.items()}
    for refusal in refusals.values():
        refusal["content"][JSON] = {"schema": PLAIN_ERROR}
    return {
        "tags": ["classify"],
        "operationId": "classify" + "".join(f"_{name}" for name in names),
        "summary": "Classify images" + "".join(f" by {name}" for name in names),
        "parameters": [*(PARAMETERS[name] for name in names), _TOP_K, TIMEOUT],
        "requestBody": {"required": True, "content": content},
        "responses": {"200": answer, **refusals},
    }


def _problem(text: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": text, "content": {PROBLEM_JSON: {"schema": schema, "example": EXAMPLE_PROBLEM}}}
