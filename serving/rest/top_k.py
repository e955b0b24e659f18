"""`top_k`, all that the image API takes beside images: from a query, or from the text fields of a form."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.datastructures import QueryParams

from serving.errors import InvalidInput

_NAME = "top_k"


def top_k_of_query(query: bytes) -> int | None:
    """What a query, as it came, says; None if it does not.

    Raises:
        InvalidInput: another parameter, more than one `top_k`, or one that is no whole number.
    """
    if not query:
        return None  # as most are; to parse even an empty one costs
    given = QueryParams(query).multi_items()
    return _top_k(given, "the query", "parameter", f"the only one taken is {_NAME}", stage="admission")


def top_k_of_form(fields: Iterable[tuple[str, str]], of_query: int | None) -> int | None:
    """What the text fields of a form say, given as names and values, or else the query.

    Raises:
        InvalidInput: as for a query; or the form and the query differ.
    """
    taken = f"the only one taken is {_NAME}, and each image is a file part"
    top_k = _top_k(fields, "the multipart form", "text field", taken, stage="decode")
    if top_k is None:
        return of_query
    if of_query not in (None, top_k):
        raise InvalidInput(
            f"{_NAME} is {of_query} in the query and {top_k} in the multipart form; give it in one of them",
            stage="decode",
        )
    return top_k


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
    try:
        return int(texts[0])
    except ValueError:
        said = f'"{texts[0][:100]}"' if texts[0] else "empty"
        raise InvalidInput(
            f"{_NAME} is {said} in {where}; it is a whole number above 0", stage=stage
        ) from None
