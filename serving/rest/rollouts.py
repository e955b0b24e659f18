"""`/v1/rollouts…`, for callers with the scope `admin`, and `/v1/feedback`, for those who classify."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from serving.access.callers import credential_in
from serving.access.keys import Caller, Scope
from serving.errors import SluiceError
from serving.gateway import Gateway
from serving.rollout.feedback import MOST_AT_ONCE


class StartRollout(BaseModel):
    """A version to let in, and how: a plan's fields; the gateway's default plan without them."""

    model_config = ConfigDict(extra="forbid")

    to: Annotated[int, Field(ge=1)]
    plan: dict[str, Any] | None = None


class Feedback(BaseModel):
    """The true label of one prediction."""

    model_config = ConfigDict(extra="forbid")

    prediction_id: str
    label: str


class FeedbackBatch(BaseModel):
    """Several at once; each is taken or refused on its own."""

    model_config = ConfigDict(extra="forbid")

    feedback: Annotated[list[Feedback], Field(min_length=1, max_length=MOST_AT_ONCE)]


def add(routes: APIRouter, gateway: Gateway) -> None:
    """Add the routes over `gateway`."""
    _add_rollouts(routes, gateway)
    _add_feedback(routes, gateway)


def _authorize(gateway: Gateway, request: Request, scope: Scope) -> Caller:
    return gateway.admission.callers.authorize(credential_in(request.headers), scope)


def _add_rollouts(routes: APIRouter, gateway: Gateway) -> None:
    @routes.get("/v1/rollouts", tags=["rollouts"], summary="Where is each model's rollout?")
    async def rollouts(request: Request) -> dict[str, Any]:
        _authorize(gateway, request, "admin")
        found, unreadable = await gateway.require_desk().all()
        told = [{"model": model, "detail": why} for model, why in unreadable.items()]
        return {"rollouts": found, "unreadable": told}

    @routes.get("/v1/rollouts/{model}", tags=["rollouts"], summary="A model's rollout, with its evidence")
    async def rollout(request: Request, model: str) -> dict[str, Any]:
        _authorize(gateway, request, "admin")
        _, whole = await gateway.require_desk().whole(model)
        return whole

    @routes.get("/v1/rollouts/{model}/history", tags=["rollouts"], summary="A model's rollouts so far")
    async def history(request: Request, model: str) -> dict[str, Any]:
        _authorize(gateway, request, "admin")
        return {"rollouts": await gateway.require_desk().history(model)}

    @routes.get(
        "/v1/rollouts/{model}/history/{rollout}", tags=["rollouts"], summary="One of them, with its evidence"
    )
    async def past(request: Request, model: str, rollout: str) -> dict[str, Any]:
        _authorize(gateway, request, "admin")
        _, whole = await gateway.require_desk().whole(model, rollout)
        return whole

    @routes.post("/v1/rollouts/{model}", tags=["rollouts"], summary="Let a version in", status_code=201)
    async def start(request: Request, model: str, body: StartRollout) -> dict[str, Any]:
        _authorize(gateway, request, "admin")
        plan = None if body.plan is None else json.dumps(body.plan)
        return await gateway.require_desk().start(model, body.to, plan)

    @routes.post("/v1/rollouts/{model}/{command}", tags=["rollouts"], summary="Pause, resume, promote, abort")
    async def order(request: Request, model: str, command: str) -> dict[str, Any]:
        caller = _authorize(gateway, request, "admin")
        return await gateway.require_desk().order(model, command, by=caller.name)


def _add_feedback(routes: APIRouter, gateway: Gateway) -> None:
    @routes.post("/v1/feedback", tags=["feedback"], summary="Say what an image really was")
    async def feedback(request: Request, body: Feedback | FeedbackBatch) -> JSONResponse:
        _authorize(gateway, request, "classify")
        receipts = gateway.require_desk().receipts
        if isinstance(body, Feedback):
            return JSONResponse({"status": await receipts.redeem(body.prediction_id, body.label)})
        results: list[dict[str, str]] = []
        for found in await receipts.redeem_all([(each.prediction_id, each.label) for each in body.feedback]):
            if isinstance(found, SluiceError):
                results.append({"status": "refused", "type": found.kind, "detail": found.message})
            else:
                results.append({"status": found})
        return JSONResponse({"results": results})
