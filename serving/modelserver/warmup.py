"""Replaying a model's warm-up requests before it serves, by the original's rules.

`assets.extra/tf_serving_warmup_requests` is a TFRecord of `PredictionLog`s: at most 1,000; one that
fails, fails the load.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError

from serving import protos
from serving.modelserver import examples
from serving.modelserver.manager import Model
from serving.modelserver.predict import PredictOptions, predict
from serving.modelserver.status import Code, StatusError, invalid_argument

logger = logging.getLogger(__name__)

MAX_RECORDS = 1000
WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"


class DamagedFile(StatusError):
    """A warm-up file that is not a TFRecord, or only up to some point."""


def warm_up(model: Model, path: Path, iterations: int, *, check_method: bool = True) -> int:
    """Replay a warm-up file.

    Args:
        model: what to run the requests against.
        path: the file.
        iterations: how often each request is run.
        check_method: insist on method names, as for requests.

    Returns:
        How many records were replayed.

    Raises:
        StatusError: a request failed, or there are too many.
        DamagedFile: the file cannot be read to its end (DATA_LOSS).
    """
    replayers = _replayers(model, check_method=check_method)
    count = 0
    for record in _records(path):
        count += 1
        if count > MAX_RECORDS:
            raise invalid_argument(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}")
        try:
            log = protos.PredictionLog.FromString(record)
        except DecodeError as error:
            raise invalid_argument(f"Failed to parse warmup record: {record!r:.200} from {path}") from error
        kind = log.WhichOneof("log_type")
        if kind == "session_run_log":
            raise StatusError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")
        if kind not in replayers:  # nothing to replay, or only for a streaming call: both are skipped
            continue
        for _ in range(iterations):
            replayers[kind](getattr(log, kind).request)
    logger.info(
        "Finished reading warmup data for model at %s. Number of warmup records read: %d.", path, count
    )
    return count


def _replayers(model: Model, *, check_method: bool) -> dict[str, Callable[[Any], Any]]:
    """Kind of log -> what replays its request, whatever model the request names."""
    options = PredictOptions(check_method_names=check_method)
    return {
        "predict_log": lambda request: predict(model, request, options),
        "classify_log": lambda request: examples.classify(model, request, check_method=check_method),
        "regress_log": lambda request: examples.regress(model, request, check_method=check_method),
        "multi_inference_log": lambda request: examples.multi_inference(
            _named_as(model, request), request, check_method=check_method
        ),
    }


def _named_as(model: Model, request: Any) -> Model:
    """The model under the name that the request's first task uses."""
    name = request.tasks[0].model_spec.name if request.tasks else model.name
    return Model(name, model.version, model.servable)


def _records(path: Path) -> Iterator[bytes]:
    try:
        yield from tf.compat.v1.io.tf_record_iterator(str(path))
    except tf.errors.DataLossError as error:
        raise DamagedFile(
            Code.DATA_LOSS, f"{error.message}. Please verify your warmup data is in TFRecord format."
        ) from error
    except tf.errors.OpError as error:
        raise StatusError(Code(error.error_code), error.message) from error
