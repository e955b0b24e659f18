"""What each RPC does, transport apart: a request message in, a response message out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from serving import protos
from serving.modelserver import examples
from serving.modelserver import predict as predicting
from serving.modelserver.core import ServerCore
from serving.modelserver.manager import Model, Servable
from serving.modelserver.metrics import Metrics
from serving.modelserver.signature import Signature
from serving.modelserver.status import Code, StatusError, invalid_argument

logger = logging.getLogger(__name__)

SIGNATURE_DEF = "signature_def"
Answer = TypeVar("Answer")
OK = Code.OK.name


@dataclass(frozen=True)
class Services:
    """PredictionService and ModelService over one core."""

    core: ServerCore
    options: predicting.PredictOptions
    metrics: Metrics

    def predict(self, request: Any) -> Any:
        """PredictionService.Predict."""
        with self.core.model(_spec_of(request)) as model:
            return self.predict_with(model, request)

    def predict_with(self, model: Model, request: Any) -> Any:
        """PredictionService.Predict of the version that the caller holds, whichever the request names."""
        return predicting.predict(self._timed(model, "Predict"), request, self.options)

    def classify(self, request: Any) -> Any:
        """PredictionService.Classify."""
        return self._infer_examples(request, "Classify", examples.classify)

    def regress(self, request: Any) -> Any:
        """PredictionService.Regress."""
        return self._infer_examples(request, "Regress", examples.regress)

    def _infer_examples(self, request: Any, api: str, infer: Callable[..., Any]) -> Any:
        with self.core.model(_spec_of(request)) as model:
            timed = self._timed(model, api)
            response = infer(timed, request, check_method=self.options.check_method_names)
            self._count_examples(model.name, request)
            return response

    def multi_inference(self, request: Any) -> Any:
        """PredictionService.MultiInference: the first task says which model and version."""
        if not request.tasks:
            raise invalid_argument("Inference request cannot have empty list of tasks.")
        with self.core.model(request.tasks[0].model_spec) as model:
            timed = self._timed(model, "MultiInference")
            response = examples.multi_inference(timed, request, check_method=self.options.check_method_names)
            self._count_examples(model.name, request)
            return response

    def _timed(self, model: Model, api: str) -> Model:
        """`model` with the time of its runs measured."""
        name, version, servable = model
        return Model(name, version, _TimedServable(servable, self.metrics, name, api))

    def measured(self, name: str, api: str, entrypoint: str, work: Callable[[], Answer]) -> Answer:
        """What `work` answers; the request is counted by its status, and its latency recorded if it succeeds.

        Args:
            name: of the model that the request names, whether or not it is there.
            api: the method, as the transport spells it.
            entrypoint: the transport, `GRPC` or `REST`.
            work: answers, or raises StatusError.
        """
        started = time.perf_counter()
        try:
            response = work()
        except Exception as error:
            code = error.code if isinstance(error, StatusError) else Code.INTERNAL
            shown = name if self.core.is_configured(name) else self.metrics.strangers.shown(name)
            self.metrics.request_count.add(shown, code.name)
            raise
        self.metrics.request_count.add(name, OK)
        elapsed_us = (time.perf_counter() - started) * 1e6
        self.metrics.request_latency.observe(elapsed_us, name, api, entrypoint)
        return response

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
                signatures.signature_def[name].CopyFrom(signature.message)
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


class _TimedServable:
    """A servable whose runs are timed, under a model's name and an API's."""

    __slots__ = ("_api", "_metrics", "_name", "_wrapped", "signatures")

    def __init__(self, wrapped: Servable, metrics: Metrics, name: str, api: str) -> None:
        self.signatures: Mapping[str, Signature] = wrapped.signatures
        self._wrapped, self._metrics, self._name, self._api = wrapped, metrics, name, api

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        started = time.perf_counter()
        outputs = self._wrapped.run(feeds, fetches)
        elapsed_us = (time.perf_counter() - started) * 1e6
        self._metrics.runtime_latency.observe(elapsed_us, self._name, self._api, "TF1")
        return outputs

    def close(self) -> None:
        self._wrapped.close()


def _spec_of(request: Any) -> Any:
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    return request.model_spec
