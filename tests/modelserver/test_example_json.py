"""`tf.Example`s as JSON objects -> messages, without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving import protos
from serving.errors import InvalidInput
from serving.example_json import make_example, parse_examples


def parsed(document: Any) -> Any:
    request = protos.ClassificationRequest()
    parse_examples(json.dumps(document).encode(), request)
    return request


def refusal(document: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        parsed(document)
    return caught.value.message


def test_each_value_goes_to_the_list_of_its_kind() -> None:
    made = make_example(
        {
            "whole": [True, False, -(2**63), 2**63 - 1],
            "real": [0.5, float("inf"), 3.4028234663852886e38],
            "text": "é",
            "bytes": [{"b64": "AP8="}, "x"],
            "empty": [],
        }
    ).features.feature
    assert list(made["whole"].int64_list.value) == [1, 0, -(2**63), 2**63 - 1]
    assert list(made["real"].float_list.value) == [0.5, float("inf"), 3.4028234663852886e38]
    assert list(made["text"].bytes_list.value) == ["é".encode()]
    assert list(made["bytes"].bytes_list.value) == [b"\x00\xff", b"x"]
    assert made["empty"].WhichOneof("kind") is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "Feature: a has element with unexpected JSON type: Null"),
        ([[1]], "Feature: a has element with unexpected JSON type: Array"),
        ([{}], "Feature: a has element with unexpected JSON type: Object"),
        ({"b64": 7}, "Feature: a has element with unexpected JSON type: Object"),
        ({"b64": "YQ==", "more": 1}, "Feature: a has element with unexpected JSON type: Object"),
        (2**63, "Feature: a has uint64 element. Only int64 is supported."),
        (-(2**63) - 1, "Feature: a has an element beyond int64: -9223372036854775809"),
        (-1e39, "Cannot convert JSON value: -1e+39 to float without loss of precision."),
        ([1, 0.5], "Unexpected element type in feature: a expecting type: int64"),
        ([0.5, 1], "Unexpected element type in feature: a expecting type: float"),
        (["x", 1], "Unexpected element type in feature: a expecting type: bytes"),
    ],
)
def test_what_no_feature_holds_is_refused(value: Any, text: str) -> None:
    assert refusal({"examples": [{"b": 1}, {"a": value}]}) == text


@pytest.mark.parametrize(
    ("example", "word"),
    [
        (None, "Null"),
        (True, "True"),
        (False, "False"),
        ([], "Array"),
        ("x", "String"),
        (1, "Number"),
        (0.5, "Number"),
    ],
)
def test_what_is_no_example_is_called_by_its_type(example: Any, word: str) -> None:
    assert refusal({"examples": [example]}) == f"Example must be JSON object but got JSON {word}"


def test_a_body_has_examples_and_may_have_a_context_and_a_signature() -> None:
    request = parsed({"examples": [{"a": 1}, {"a": 2}]})
    found = request.input.example_list.examples
    assert [each.features.feature["a"].int64_list.value[0] for each in found] == [1, 2]
    assert request.model_spec.signature_name == ""
    request = parsed({"signature_name": "s", "context": {"b": 3}, "examples": [{"a": 1}]})
    holder = request.input.example_list_with_context
    assert request.model_spec.signature_name == "s"
    assert holder.context.features.feature["b"].int64_list.value[0] == 3
    assert holder.examples[0].features.feature["a"].int64_list.value[0] == 1


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({}, "key 'examples' is expected and was not found"),
        ({"examples": {}}, "Expecting 'examples' value to be an list/array"),
        ({"examples": []}, "'examples' value is an empty array"),
        ({"signature_name": 7, "examples": []}, "'signature_name' key must be a string value."),
        ([1], "Is not object"),
    ],
)
def test_a_body_without_examples_is_refused(document: Any, text: str) -> None:
    assert text in refusal(document)
