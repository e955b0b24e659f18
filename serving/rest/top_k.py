"""`top_k`, all that the image API takes beside images: from a query, the text fields of a form, or JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.datastructures import QueryParams

from serving.errors import InvalidInput

_NAME = "top_k"
# `int` takes more: blanks around it, "1_0", digits of every script. No more digits than an error shows: `int`
# refuses thousands of them.
_WHOLE_NUMBER = re.compile("[0-9]{1,100}")


def top_k_of_query(query: bytes) -> int | None:
    """What a query, as it came, says; None if it does not.

    Raises:
        InvalidInput: another parameter, more than one `top_k`, or one that is no whole number.
    """
    if not query:
        return None  # as most are; to parse even an empty one costs
    given = QueryParams(query).multi_items()
    return _top_k(given, "the query", "parameter", f"the only one allowed is {_NAME}", stage="admission")


def top_k_of_form(fields: Iterable[tuple[str, str]], of_query: int | None) -> int | None:
    """What the text fields of a form say, given as names and values, or else the query.

    Raises:
        InvalidInput: as for a query; or the form and the query differ.
    """
    taken = f"the only one allowed is {_NAME}, and each image is a file part"
    top_k = _top_k(fields, "the multipart form", "text field", taken, stage="decode")
    return agreed(of_query, top_k, "the multipart form")


def agreed(of_query: int | None, of_body: int | None, body: str) -> int | None:
    """What the query and the body say, if only one does or both say the same; None if neither does.

    Args:
        of_query: what the query says.
        of_body: what the body says.
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
