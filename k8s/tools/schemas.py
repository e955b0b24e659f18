"""Hold documents against schemas: Kubernetes' own, our custom resource's, and subsets of others'.

Kubernetes' schemas come with the package kubernetes-validate, in their strict form: an unknown field is a
fault. Instances of a custom resource are held against the definition that is built beside them, with its
validation rules, which are in the Common Expression Language. The kinds of the Prometheus operator, KEDA and
the Gateway API are held against `third_party.yaml`: the fields that these manifests use, written from those
projects' references. It finds a misspelt field, and may not know one that is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cel
import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]
import yaml

from k8s.tools.manifests import Document, name_of, of_kind

# The oldest that docs/operations.md promises, and the newest whose schemas are at hand.
KUBERNETES_VERSIONS = ("1.30", "1.37")
_THIRD_PARTY = Path(__file__).with_name("third_party.yaml")
_METADATA = ("apiVersion", "kind", "metadata")
_known: dict[str, tuple[str, ...]] = {}  # the faults of a core document by its text


def faults(documents: Sequence[Document]) -> Iterator[str]:
    """What is wrong with the documents by their schemas."""
    own = {
        (version["name"], definition["spec"]["names"]["kind"]): version["schema"]["openAPIV3Schema"]
        for definition in of_kind(documents, "CustomResourceDefinition")
        for version in definition["spec"]["versions"]
    }
    others = _third_party()
    for document in documents:
        version, kind = document.get("apiVersion", ""), document.get("kind", "")
        if (version.rpartition("/")[2], kind) in own:
            schema = own[version.rpartition("/")[2], kind]
            yield from _custom(document, schema)
        elif f"{version} {kind}" in others:
            yield from _custom(document, others[f"{version} {kind}"])
        else:
            yield from _core(document)


@cache
def _third_party() -> dict[str, Document]:
    schemas: dict[str, Document] = yaml.safe_load(_THIRD_PARTY.read_text())
    return schemas


def _core(document: Document) -> tuple[str, ...]:
    """Faults by Kubernetes' schemas. Builds have most documents in common, and reading a schema takes as
    long as all the rest: a document that was looked at once is known.
    """
    text = repr(document)
    if text not in _known:
        _known[text] = tuple(_core_faults(document))
    return _known[text]


def _core_faults(document: Document) -> Iterator[str]:
    for version in KUBERNETES_VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = ".".join(str(part) for part in error.path)
            yield f"{name_of(document)}: {where or 'document'}: {error.message} (Kubernetes {version})"
        except kubernetes_validate.SchemaNotFoundError:
            kind = f"{document.get('apiVersion')} {document.get('kind')}"
            yield f"{name_of(document)}: there is no {kind} (Kubernetes {version})"


def _custom(document: Document, schema: Document) -> Iterator[str]:
    """Faults of an instance of a custom resource, as the API server would find them with strict fields."""
    wide = {**schema, "properties": {**{key: {} for key in _METADATA}, **schema["properties"]}}
    validator = jsonschema.Draft7Validator(closed(wide))
    for error in validator.iter_errors(document):
        where = ".".join(str(part) for part in error.absolute_path)
        yield f"{name_of(document)}: {where or 'document'}: {error.message}"
    for where, message in _broken_rules(document, schema, ()):
        yield f"{name_of(document)}: {where}: {message}"


def closed(schema: Document) -> Document:
    """A structural schema as a JSON schema (draft 7) that refuses fields it does not know."""
    found = dict(schema)
    found.pop("format", None)
    for bound in ("minimum", "maximum"):
        if found.pop("exclusive" + bound.capitalize(), False):
            found["exclusive" + bound.capitalize()] = found.pop(bound)
    if found.pop("x-kubernetes-int-or-string", False):
        found["type"] = ["integer", "string"]
    if "properties" in found:
        found["properties"] = {name: closed(each) for name, each in found["properties"].items()}
        if not found.get("x-kubernetes-preserve-unknown-fields"):
            found["additionalProperties"] = False
    if isinstance(found.get("additionalProperties"), dict):
        found["additionalProperties"] = closed(found["additionalProperties"])
    if "items" in found:
        found["items"] = closed(found["items"])
    if found.pop("nullable", False):
        found["type"] = [found["type"], "null"]
        if "enum" in found:
            found["enum"] = [*found["enum"], None]
    return found


def _broken_rules(value: Any, schema: Document, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Rules that do not hold of a value or of what is in it; rules of change need two, and are left out."""
    if value is None:
        return
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" not in rule["rule"] and not _holds(rule["rule"], value):
            yield ".".join(path) or "document", rule.get("message", rule["rule"])
    if isinstance(value, dict):
        for name, each in schema.get("properties", {}).items():
            if name in value:
                yield from _broken_rules(value[name], each, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _broken_rules(item, schema.get("items", {}), (*path, str(index)))


def _holds(rule: str, value: Any) -> bool:
    context = cel.Context()
    context.add_variable("self", value)
    context.add_function(
        "isSorted", lambda items: list(items) == sorted(items)
    )  # of Kubernetes' list library
    return bool(cel.evaluate(rule, context))
