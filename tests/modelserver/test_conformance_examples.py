"""What Classify, Regress and MultiInference answer, and refuse, over gRPC; true of the original, too."""

from __future__ import annotations

from typing import Any

import pytest

from serving import protos
from tests.modelserver.process import ServerProcess
from tests.modelserver.test_conformance_predict import Code, refusal

MODEL = "odd_examples"
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"


def with_examples(message: Any, count: int = 2) -> Any:
    for _ in range(count):
        message.input.example_list.examples.add()
    return message


def request(method: str, signature: str) -> Any:
    request_class, _ = protos.methods(protos.PREDICTION_SERVICE)[method]
    return with_examples(request_class(model_spec={"name": MODEL, "signature_name": signature}))


def test_labels_alone_and_scores_with_labels_classify(server: ServerProcess) -> None:
    for signature, score in (("good", 1.0), ("labels_only", 0.0)):
        answer = server.call(protos.PREDICTION_SERVICE, "Classify", request("Classify", signature))
        found = [[(c.label, c.score) for c in row.classes] for row in answer.result.classifications]
        assert found == [[("1.000000", score)] * 2] * 2, signature
        assert answer.model_spec.name == MODEL
        assert answer.model_spec.signature_name == signature


def test_a_list_of_values_regresses(server: ServerProcess) -> None:
    answer = server.call(protos.PREDICTION_SERVICE, "Regress", request("Regress", "values"))
    assert [entry.value for entry in answer.result.regressions] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("method", "signature", "code", "text"),
    [
        ("Classify", "", Code.INVALID_ARGUMENT, "No signature was found with the name: serving_default"),
        ("Classify", "two_inputs", Code.INVALID_ARGUMENT, "Expected one input Tensor."),
        ("Classify", "three_outputs", Code.INVALID_ARGUMENT, "Expected one or two output Tensors, found 3"),
        ("Classify", "named_input", Code.FAILED_PRECONDITION, "No classification inputs found in"),
        ("Classify", "named_output", Code.FAILED_PRECONDITION,
         'outputs to contain at least one of "classes" or "scores". Signature was: '),
        ("Classify", "flat", Code.INVALID_ARGUMENT,
         "Expected Tensor shape: [batch_size num_classes] but got [2]"),
        ("Classify", "flat_labels", Code.INVALID_ARGUMENT,
         "Expected Tensor shape: [batch_size num_classes] but got [2]"),
        ("Classify", "numbers_for_labels", Code.INVALID_ARGUMENT,
         "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
        ("Classify", "doubles", Code.INVALID_ARGUMENT, "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
        ("Classify", "one_row", Code.INVALID_ARGUMENT, "Expected scores output batch size of 2. Got: 1"),
        ("Classify", "one_row_of_labels", Code.INVALID_ARGUMENT,
         "Expected classes output batch size of 2. Got: 1"),
        ("Classify", "unlike_widths", Code.INVALID_ARGUMENT,
         "Tensors class and score should match in dim_size(1). Got 1 vs. 2"),
        ("Regress", "values_two_inputs", Code.INVALID_ARGUMENT, "Expected one input Tensor."),
        ("Regress", "values_two_outputs", Code.INVALID_ARGUMENT, "Expected one output Tensor."),
        ("Regress", "values_named_input", Code.FAILED_PRECONDITION,
         "No regression inputs found in SignatureDef"),
        ("Regress", "values_named_output", Code.FAILED_PRECONDITION,
         "No regression outputs found in SignatureDef"),
        ("Regress", "one_value", Code.INVALID_ARGUMENT,
         "Input batch size did not match output batch size: 2 vs. 1"),
        ("Regress", "scalar", Code.INVALID_ARGUMENT, "either [batch_size] or [batch_size, 1] but got []"),
        ("Regress", "cube", Code.INVALID_ARGUMENT, "either [batch_size] or [batch_size, 1] but got [2,1,1]"),
    ],
)  # fmt: skip
def test_signatures_that_cannot_be_used(
    server: ServerProcess, method: str, signature: str, code: Code, text: str
) -> None:
    told, details = refusal(server, protos.PREDICTION_SERVICE, method, request(method, signature))
    assert told is code
    assert text in details


def multi(*tasks: tuple[str, str, str]) -> Any:
    """A request of tasks: model, signature, method."""
    request_class, _ = protos.methods(protos.PREDICTION_SERVICE)["MultiInference"]
    made = request_class()
    for model, signature, method in tasks:
        made.tasks.add(model_spec={"name": model, "signature_name": signature}, method_name=method)
    return with_examples(made)


def test_tasks_may_share_an_output(server: ServerProcess) -> None:
    tasks = (MODEL, "labels_only", CLASSIFY), (MODEL, "good", CLASSIFY), (MODEL, "values", REGRESS)
    answer = server.call(protos.PREDICTION_SERVICE, "MultiInference", multi(*tasks))
    labels, both, values = answer.results
    assert [row.classes[1].label for row in labels.classification_result.classifications] == ["1.000000"] * 2
    assert [row.classes[1].score for row in both.classification_result.classifications] == [1.0] * 2
    assert [entry.value for entry in values.regression_result.regressions] == [1.0] * 2
    assert [result.model_spec.version.value for result in answer.results] == [1, 1, 1]


GOOD = (MODEL, "good", CLASSIFY)


@pytest.mark.parametrize(
    ("tasks", "code", "text"),
    [
        ([], Code.INVALID_ARGUMENT, "Inference request cannot have empty list of tasks."),
        ([GOOD, ("", "values", REGRESS)], Code.INVALID_ARGUMENT, "Found ModelSpec with an empty model name."),
        ([GOOD, ("half_plus_two_tf1", "values", REGRESS)], Code.INVALID_ARGUMENT,
         "All ModelSpecs in a MultiInferenceRequest must access the same model name."),
        ([GOOD, (MODEL, "nope", REGRESS)], Code.INVALID_ARGUMENT,
         "Requested signature not found in model graph: nope"),
        ([GOOD, (MODEL, "", REGRESS)], Code.INVALID_ARGUMENT,
         "Requested signature not found in model graph: serving_default"),
        ([GOOD, (MODEL, "values", "tensorflow/serving/predict")], Code.UNIMPLEMENTED,
         "Unsupported signature method_name: tensorflow/serving/predict"),
        ([GOOD, (MODEL, "other_inputs", CLASSIFY)], Code.INVALID_ARGUMENT,
         "Input tensor must be the same for all Signatures."),
        ([GOOD, (MODEL, "values", CLASSIFY)], Code.INVALID_ARGUMENT,
         "Expected classification signature method_name to be"),
        ([GOOD, (MODEL, "labels_only", REGRESS)], Code.INVALID_ARGUMENT,
         "Expected regression signature method_name to be"),
    ],
)  # fmt: skip
def test_tasks_that_cannot_be_run_together(
    server: ServerProcess, tasks: list[tuple[str, str, str]], code: Code, text: str
) -> None:
    told, details = refusal(server, protos.PREDICTION_SERVICE, "MultiInference", multi(*tasks))
    assert told is code
    assert text in details


def test_tasks_without_examples_are_refused(server: ServerProcess) -> None:
    message = multi(GOOD)
    message.ClearField("input")
    told, details = refusal(server, protos.PREDICTION_SERVICE, "MultiInference", message)
    assert (told, details) == (Code.INVALID_ARGUMENT, "Input is empty.")
