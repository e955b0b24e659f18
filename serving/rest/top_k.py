"""`top_k`, the image API's only parameter: from a query, the text fields of a form, or JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.datastructures import QueryParams

from serving.errors import InvalidInput

_NAME = "top_k"
# `int` accepts more: blanks around it, "1_0", digits of every script. There are no more digits here than an
# error shows: `int` refuses thousands of them.
_WHOLE_NUMBER = re.compile("[0-9]{1,100}")


def top_k_of_query(query: bytes) -> int | None:
    """The `top_k` of a raw query; None if it has none.

    Raises:
        InvalidInput: another parameter, more than one `top_k`, or one that is not a whole number.
    """
    if not query:
        return None  # the usual case; parsing even an empty query costs time
    given = QueryParams(query).multi_items()
    return _top_k(given, "the query", "parameter", f"the only one allowed is {_NAME}", stage="admission")


def top_k_of_form(fields: Iterable[tuple[str, str]], of_query: int | None) -> int | None:
    """The `top_k` of a form's text fields, given as names and values, or else of the query.

    Raises:
        InvalidInput: as for a query; or the form and the query differ.
    """
    taken = f"the only one allowed is {_NAME}, and each image is a file part"
    top_k = _top_k(fields, "the multipart form", "text field", taken, stage="decode")
    return agreed(of_query, top_k, "the multipart form")


def agreed(of_query: int | None, of_body: int | None, body: str) -> int | None:
    """The `top_k` of query and body, if only one has it or both agree; None if neither has it.

    Args:
        of_query: the query's.
        of_body: the body's.
        body: what the body is called in errors.

    Raises:
        InvalidInput: they differ.
    """
    if of_body is None:
        return of_query
    if of_query not in (None, of_body):
        raise InvalidInput(
            f"{_NAME} is {of_query} in the query and {of_body} in {body}; give it in one of them",
            stage="decode",
        )
    return of_body


def _top_k(given: Iterable[tuple[str, str]], where: str, what: str, taken: str, *, stage: str) -> int | None:
    """The value of the only pair, if there is one; `where`, `what` and `taken` are for errors."""
    texts = []
    for name, text in given:
        if name != _NAME:
            raise InvalidInput(f'{where} has a {what} "{name[:100]}"; {taken}', stage=stage)
        texts.append(text)
    if not texts:
        return None
    if len(texts) > 1:
        raise InvalidInput(f"{where} has {_NAME} {len(texts)} times; give it once", stage=stage)
    if not _WHOLE_NUMBER.fullmatch(texts[0]):
        said = f'"{texts[0][:100]}"' if texts[0] else "empty"
        raise InvalidInput(f"{_NAME} is {said} in {where}; it is a whole number above 0", stage=stage)
    return int(texts[0])
