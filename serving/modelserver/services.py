"""What each RPC does, transport apart: a request message in, a response message out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving import protos
from serving.modelserver import examples
from serving.modelserver import predict as predicting
from serving.modelserver.core import ServerCore
from serving.modelserver.manager import Servable
from serving.modelserver.metrics import Metrics
from serving.modelserver.status import Code, StatusError, invalid_argument

logger = logging.getLogger(__name__)

SIGNATURE_DEF = "signature_def"


@dataclass(frozen=True)
class Services:
    """PredictionService and ModelService over one core.

    Attributes:
        entrypoint: the transport's name in the metrics, `GRPC` or `REST`.
    """

    core: ServerCore
    options: predicting.PredictOptions
    metrics: Metrics
    entrypoint: str

    def predict(self, request: Any) -> Any:
        """PredictionService.Predict."""
        name = _spec_of(request).name
        with self._measured(name, "Predict"), self._model(request.model_spec, "Predict") as model:
            return predicting.predict(model, request, self.options)

    def classify(self, request: Any) -> Any:
        """PredictionService.Classify."""
        name = _spec_of(request).name
        with self._measured(name, "Classify"), self._model(request.model_spec, "Classify") as model:
            self._count_examples(name, request)
            return examples.classify(model, request, check_method=self.options.check_method_names)

    def regress(self, request: Any) -> Any:
        """PredictionService.Regress."""
        name = _spec_of(request).name
        with self._measured(name, "Regress"), self._model(request.model_spec, "Regress") as model:
            self._count_examples(name, request)
            return examples.regress(model, request, check_method=self.options.check_method_names)

    def multi_inference(self, request: Any) -> Any:
        """PredictionService.MultiInference: the first task says which model and version."""
        if not request.tasks:
            raise invalid_argument("Inference request cannot have empty list of tasks.")
        with self._model(request.tasks[0].model_spec, "MultiInference") as model:
            self._count_examples(model.name, request)
            return examples.multi_inference(model, request, check_method=self.options.check_method_names)

    @contextmanager
    def _model(self, spec: Any, api: str) -> Iterator[predicting.Model]:
        """The model that `spec` asks for; the time of its runs is measured."""
        with self.core.model(spec) as model:
            timed = _TimedServable(
                model.servable, lambda us: self.metrics.runtime_latency.observe(us, model.name, api, "TF1")
            )
            yield predicting.Model(model.name, model.version, timed)

    @contextmanager
    def _measured(self, name: str, api: str) -> Iterator[None]:
        """Count a request under its status, and its latency if it succeeds."""
        started = time.perf_counter()
        status = Code.OK
        try:
            yield
        except StatusError as error:
            status = error.code
            raise
        except Exception:
            status = Code.INTERNAL
            raise
        finally:
            self.metrics.request_count.add(name, status.name)
            if status is Code.OK:
                elapsed_us = (time.perf_counter() - started) * 1e6
                self.metrics.request_latency.observe(elapsed_us, name, api, self.entrypoint)

    def _count_examples(self, name: str, request: Any) -> None:
        kind = request.input.WhichOneof("kind")
        count = len(getattr(request.input, kind).examples) if kind else 0
        if count:
            self.metrics.example_counts.observe(count, name)
            self.metrics.example_count_total.add(name, by=count)

    def get_model_metadata(self, request: Any) -> Any:
        """PredictionService.GetModelMetadata."""
        _spec_of(request)
        if not request.metadata_field:
            raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
        for name in request.metadata_field:
            if name != SIGNATURE_DEF:
                raise invalid_argument(f"Metadata field {name} is not supported")
        with self.core.model(request.model_spec) as model:
            response = protos.GetModelMetadataResponse()
            response.model_spec.name = model.name
            response.model_spec.version.value = model.version
            signatures = protos.SignatureDefMap()
            for name, signature in model.servable.signatures.items():
                signatures.signature_def[name].CopyFrom(signature)
            response.metadata[SIGNATURE_DEF].Pack(signatures)
            return response

    def get_model_status(self, request: Any) -> Any:
        """ModelService.GetModelStatus."""
        _spec_of(request)
        response = protos.GetModelStatusResponse()
        for version, at in self.core.statuses(request.model_spec).items():
            status = response.model_version_status.add(version=version, state=int(at.state))
            status.status.error_code = int(at.error.code if at.error else Code.OK)
            status.status.error_message = at.error.message if at.error else ""
        return response

    def handle_reload_config(self, request: Any, is_cancelled: Callable[[], bool]) -> Any:
        """ModelService.HandleReloadConfigRequest."""
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid_argument(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported"
            )
        config = protos.ModelServerConfig()
        config.CopyFrom(request.config)
        try:
            self.core.reload(config, is_cancelled)
        except StatusError as error:
            logger.error("ReloadConfig failed: %s", error)  # noqa: TRY400 - the text is all there is to say
            raise
        response = protos.ReloadConfigResponse()
        response.status.error_code = int(Code.OK)
        return response


@dataclass(frozen=True)
class _TimedServable:
    """A servable whose runs are timed; `observe` gets microseconds."""

    wrapped: Servable
    observe: Callable[[float], None]

    @property
    def signatures(self) -> Mapping[str, Any]:
        return self.wrapped.signatures

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        started = time.perf_counter()
        outputs = self.wrapped.run(feeds, fetches)
        self.observe((time.perf_counter() - started) * 1e6)
        return outputs

    def close(self) -> None:
        self.wrapped.close()


def _spec_of(request: Any) -> Any:
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    return request.model_spec
