"""JSON bodies as TensorFlow Serving reads them: `NaN` and `Infinity` are numbers, `{"b64": …}` is bytes.

Stricter than the original in two things: a key that is repeated, and strings that are not Unicode, are
refused. Errors are worded as the original's parser (rapidjson) words them.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

from serving.errors import InvalidInput

MAX_QUOTED_CHARS = 1000  # of a value that an error quotes
_QUOTING = json.JSONEncoder(indent=4, ensure_ascii=False)
# E-mail encoders break lines; the original skips line breaks, too (`absl::Base64Unescape`).
WHITE_SPACE = b"\t\n\v\f\r "

_PARSE_ERRORS = {
    "Expecting value": "Invalid value.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Expecting ',' delimiter": "Missing a comma after an object member or an array element.",
    "Extra data": "The document root must not be followed by other values.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid control character at": "Invalid encoding in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
}

# Half a character, as UTF-16 writes those beyond its 16 bits.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object that `body` is; raises InvalidInput with the place of a fault."""
    if not body:
        raise InvalidInput("JSON Parse error: The document is empty")
    _check_surrogates(body)
    try:
        document = json.loads(body.decode("utf-8-sig"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"JSON Parse error: Invalid encoding in string. at offset: {error.start}"
        ) from error
    except json.JSONDecodeError as error:
        text = _PARSE_ERRORS.get(error.msg, error.msg)
        raise InvalidInput(f"JSON Parse error: {text} at offset: {error.pos}") from error
    except RecursionError as error:
        raise InvalidInput("JSON Parse error: The document is nested too deeply.") from error
    except ValueError as error:  # a number of more digits than Python converts
        raise InvalidInput("JSON Parse error: Number too big to be stored in double.") from error
    if not isinstance(document, dict):
        raise InvalidInput(f"JSON Value: {quoted(document)} Is not object")
    return document


def _check_surrogates(body: bytes) -> None:
    """Refuse half a surrogate pair: the string could not be encoded in UTF-8, nor quoted in an error."""
    if _SURROGATE.search(body) is None:
        return
    for escape in _ESCAPE.finditer(body):
        if escape[1] is not None:
            raise InvalidInput(
                f"JSON Parse error: The surrogate pair in string is invalid. at offset: {escape.start()}"
            )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InvalidInput(f'JSON Parse error: Duplicate key: "{key}"')
            seen.add(key)
    return found


def quoted(value: Any) -> str:
    """`value` as JSON for an error's text, cut where it gets long."""
    text = ""
    for piece in _QUOTING.iterencode(value):  # all of a document would take forty times its size
        text += piece[: MAX_QUOTED_CHARS + 1]
        if len(text) > MAX_QUOTED_CHARS:
            return text[:MAX_QUOTED_CHARS] + "..."
    return text


def type_of(value: Any) -> str:
    """The original's word for the type of a JSON value."""
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return "True" if value else "False"
    words = {"dict": "Object", "list": "Array", "str": "String"}
    return words.get(type(value).__name__, "Number")


def is_base64(value: Any) -> bool:
    """Whether `value` is `{"b64": "…"}` and nothing else."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def decode_base64(value: Any) -> bytes:
    """The bytes of `{"b64": "…"}`; raises InvalidInput."""
    if not is_base64(value):
        raise InvalidInput(f"JSON Value: {quoted(value)} not formatted correctly for base64 data")
    try:
        text = value["b64"].encode("ascii").translate(None, WHITE_SPACE)
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except ValueError as error:
        raise InvalidInput("Unable to base64 decode") from error


def signature_name(document: Mapping[str, Any]) -> str:
    """The signature that a body names; empty if none."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise InvalidInput(
            f"JSON Value: {quoted(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return name
