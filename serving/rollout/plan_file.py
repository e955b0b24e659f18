"""Reads a plan from YAML or TOML, with errors that point at the line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from serving import faults
from serving.errors import InvalidInput
from serving.faults import Location
from serving.rollout.plan import Plan

_MAX_BYTES = 256 * 1024


def load_plan(path: Path) -> Plan:
    """The plan in a `.yaml`, `.yml` or `.toml` file.

    Raises:
        InvalidInput: There is no such file, it cannot be read, or it is not a plan; then the message has one
            line `file:line: field: fault` for each fault.
    """
    if path.suffix not in (".yaml", ".yml", ".toml"):
        raise InvalidInput(
            f"{path}: a plan is a .yaml or .toml file, not {path.suffix or 'one without a suffix'}"
        )
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"{path}: cannot read the plan: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise InvalidInput(f"{path}: too large for a plan: it has more than {_MAX_BYTES} bytes")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InvalidInput(f"{path}:{line}: not UTF-8 text") from error
    return parse_plan(text, source=str(path), toml=path.suffix == ".toml")


def parse_plan(text: str, *, source: str = "plan", toml: bool = False) -> Plan:
    """The plan in a text; see `load_plan`."""
    values, lines = _parse_toml(text, source) if toml else _parse_yaml(text, source)
    if not isinstance(values, Mapping):
        raise InvalidInput(f"{source}:1: a plan is a mapping of fields, not {_kind(values)}")
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        found = [_describe(fault, lines, source) for fault in _own(error.errors())]
        raise InvalidInput("\n".join(found)) from error


def _own(found: Sequence[Any]) -> list[Any]:
    """The faults that do not just follow from one further in: a list without its bad items is too short."""
    places = [tuple(each["loc"]) for each in found]
    return [
        each
        for each, place in zip(found, places, strict=True)
        if not any(other != place and other[: len(place)] == place for other in places)
    ]


def _describe(fault: Any, lines: Mapping[Location, int], source: str) -> str:
    location: Location = tuple(fault["loc"])
    line = next((lines[location[:n]] for n in range(len(location), 0, -1) if location[:n] in lines), 1)
    message = faults.message(fault)
    if fault["type"] == "extra_forbidden":
        message = f"there is no such field{_fields_of(location[:-1])}"
    elif fault["type"] == "model_type":
        message = f"this is a mapping of fields{_fields_of(location)}"
    return f"{source}:{line}: {faults.dotted(location) or 'plan'}: {message}"


def _fields_of(location: Location) -> str:
    """The fields of the section at a place, for the end of a sentence; nothing if it is none."""
    section: Any = Plan
    for part in location:
        section = _section_of(section, part)
    return "" if section is None else f"; there are: {', '.join(section.model_fields)}"


def _section_of(section: Any, part: str | int) -> Any:
    """The model of a field of `section`, through optionals and tuples; None if it has none."""
    if section is None or isinstance(part, int):
        return section
    field = section.model_fields.get(part)
    pending = [field.annotation] if field else []
    while pending:
        annotation = pending.pop()
        if hasattr(annotation, "model_fields"):
            return annotation
        pending += getattr(annotation, "__args__", ())
    return None


def _kind(value: object) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"


def _parse_yaml(text: str, source: str) -> tuple[Any, dict[Location, int]]:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise InvalidInput(f"{source}:{line}: not YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{source}: not YAML: {error}") from error
    lines: dict[Location, int] = {}
    if root is not None:
        _yaml_lines(root, (), lines, source)
    return ({} if values is None else values), lines


def _yaml_lines(node: yaml.Node, at: Location, lines: dict[Location, int], source: str) -> None:
    """Notes the line of each key and item, and refuses a key that is written twice."""
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _yaml_lines(item, (*at, index), lines, source)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            inner = (*at, str(key.value))
            if inner in lines:
                raise InvalidInput(
                    f"{source}:{line}: {faults.dotted(inner)} is written twice, first on {lines[inner]}"
                )
            lines[inner] = line
            _yaml_lines(value, inner, lines, source)


_TOML_TABLE = re.compile(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(#.*)?$")
_TOML_KEY = re.compile(r"^\s*([\w.\"'-]+)\s*=")


def _parse_toml(text: str, source: str) -> tuple[Any, dict[Location, int]]:
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        found = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = found[1] if found else str(text.count("\n") + 1)
        problem = re.sub(r" \(at .*\)$", "", str(error))
        raise InvalidInput(f"{source}:{line}: not TOML: {problem}") from error
    return values, _toml_lines(text)


def _toml_lines(text: str) -> dict[Location, int]:
    """The line of each table and key. tomllib keeps none, and a plan's TOML is simple enough to scan."""
    lines: dict[Location, int] = {}
    counts: dict[Location, int] = {}
    table: Location = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _TOML_TABLE.match(line):
            table = _toml_path(header[2])
            if header[1] == "[[":
                index = counts[table] = counts.get(table, -1) + 1
                lines.setdefault(table, number)
                table = (*table, index)
            lines.setdefault(table, number)
        elif key := _TOML_KEY.match(line):
            lines.setdefault((*table, *_toml_path(key[1])), number)
    return lines


def _toml_path(dotted: str) -> Location:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
