"""`sluice.v1.Rollouts`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
import orjson

from serving import protos
from serving.access.keys import Caller, Scope
from serving.errors import InvalidInput, SluiceError
from serving.gateway import Gateway
from serving.prediction import RequestContext
from serving.rollout.feedback import MOST_AT_ONCE
from serving.rpc.call import service


class RolloutsRpc:
    """The service's methods over a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server registers."""
        return service(
            protos.ROLLOUTS,
            self._gateway,
            {
                "Start": self.start,
                "Order": self.order,
                "Get": self.get,
                "List": self.list,
                "Feedback": self.feedback,
            },
        )

    def _authorize(self, context: RequestContext, scope: Scope) -> Caller:
        return self._gateway.admission.callers.authorize(context.credential, scope)

    async def start(self, request: Any, context: RequestContext) -> Any:
        """StartRolloutRequest -> Rollout."""
        self._authorize(context, "admin")
        desk = self._gateway.require_desk()
        return _message(await desk.start(request.model, request.to, request.plan or None))

    async def order(self, request: Any, context: RequestContext) -> Any:
        """OrderRolloutRequest -> Rollout."""
        caller = self._authorize(context, "admin")
        return _message(await self._gateway.require_desk().order(request.model, request.command, caller.name))

    async def get(self, request: Any, context: RequestContext) -> Any:
        """GetRolloutRequest -> Rollout."""
        self._authorize(context, "admin")
        short, whole = await self._gateway.require_desk().whole(request.model, request.id)
        answer = _message(short)
        answer.record_json = orjson.dumps(whole).decode()
        return answer

    async def list(self, request: Any, context: RequestContext) -> Any:
        """ListRolloutsRequest -> ListRolloutsResponse."""
        self._authorize(context, "admin")
        desk = self._gateway.require_desk()
        unreadable: Mapping[str, str] = {}
        if request.model:
            found = await desk.history(request.model)
        else:
            found, unreadable = await desk.all()
        answer = protos.message("sluice.v1.ListRolloutsResponse")(rollouts=map(_message, found))
        for model, why in unreadable.items():
            answer.unreadable.add(model=model, detail=why)
        return answer

    async def feedback(self, request: Any, context: RequestContext) -> Any:
        """FeedbackRequest -> FeedbackResponse."""
        self._authorize(context, "classify")
        if not 1 <= len(request.predictions) <= MOST_AT_ONCE:
            raise InvalidInput(
                f"the request has {len(request.predictions)} predictions; it takes 1 to {MOST_AT_ONCE}"
            )
        receipts = self._gateway.require_desk().receipts
        response = protos.message("sluice.v1.FeedbackResponse")()
        told = [(each.prediction_id, each.label) for each in request.predictions]
        for found in await receipts.redeem_all(told):
            if isinstance(found, SluiceError):
                refused = response.results.add(status="refused")
                refused.error.kind, refused.error.message = found.kind, found.message
            else:
                response.results.add(status=found)
        return response


_FIELDS = ("id", "model", "stable", "candidate", "phase", "step", "weight", "code", "reason")


def _message(short: Mapping[str, Any]) -> Any:
    return protos.message("sluice.v1.Rollout")(**{name: short[name] for name in _FIELDS})
