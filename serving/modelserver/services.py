"""What each RPC does, transport apart: a request message in, a response message out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serving import protos
from serving.modelserver import predict as predicting
from serving.modelserver.core import ServerCore
from serving.modelserver.status import Code, StatusError, invalid_argument

logger = logging.getLogger(__name__)

SIGNATURE_DEF = "signature_def"


@dataclass(frozen=True)
class Services:
    """PredictionService and ModelService over one core."""

    core: ServerCore
    options: predicting.PredictOptions

    def predict(self, request: Any) -> Any:
        """PredictionService.Predict."""
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        with self.core.model(request.model_spec) as model:
            return predicting.predict(model, request, self.options)

    def get_model_metadata(self, request: Any) -> Any:
        """PredictionService.GetModelMetadata."""
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
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
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
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
