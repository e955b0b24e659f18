"""Rollouts and feedback over HTTP and gRPC, by callers with keys."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from serving import protos
from serving.access.keys import KeyEntry, new_key
from serving.rollout.machine import Phase
from tests.rollout.replicas import FAST, PICTURES, VersionedReplica, scene_over
from tests.support.fake_replica import FakeReplica, running
from tests.support.gateways import gateway_over

HELD = FAST | {"canary": [{"weight": 0.5, "min_time_s": 1000}]}
PNG = {"content-type": "image/png"}


def keys_file(folder: Path) -> tuple[Path, dict[str, str], dict[str, str]]:
    """A file with an admin's and a caller's key, and the headers of each."""
    admin, admin_entry = new_key("operator", ["admin", "classify"])
    caller, caller_entry = new_key("camera", ["classify"])
    path = folder / "keys.toml"
    path.write_text("".join(map(_entry, (admin_entry, caller_entry))))
    return path, {"x-api-key": admin}, {"x-api-key": caller}


def _entry(entry: KeyEntry) -> str:
    scopes = ", ".join(f'"{scope}"' for scope in entry.scopes)
    return f'[[keys]]\nid = "{entry.id}"\nname = "{entry.name}"\nhash = "{entry.hash}"\nscopes = [{scopes}]\n'


async def test_a_rollout_is_run_over_http(tmp_path: Path) -> None:
    path, admin, caller = keys_file(tmp_path)
    async with scene_over(tmp_path / "store", VersionedReplica(), headers=caller, keys_file=path) as scene:
        ask = scene.client
        assert (await ask.get("/v1/rollouts", headers={"x-api-key": "wrong"})).status_code == 401
        assert (await ask.get("/v1/rollouts")).status_code == 403
        assert (await ask.get("/v1/rollouts", headers=admin)).json() == {"rollouts": [], "unreadable": []}
        assert (await ask.get("/v1/rollouts/digits", headers=admin)).status_code == 404
        bad = await ask.post("/v1/rollouts/digits", headers=admin, json={"to": 2, "plan": {"alpha": 7}})
        assert bad.status_code == 400
        assert "alpha: input should be less than 1" in bad.json()["detail"]
        started = await ask.post("/v1/rollouts/digits", headers=admin, json={"to": 2, "plan": HELD})
        assert started.status_code == 201
        assert (started.json()["stable"], started.json()["candidate"]) == (1, 2)
        twice = await ask.post("/v1/rollouts/digits", headers=admin, json={"to": 3})
        assert twice.status_code == 409
        await scene.reached(Phase.CANARY)
        whole = (await ask.get("/v1/rollouts/digits", headers=admin)).json()
        assert whole["state"]["phase"] == "canary"
        assert whole["explanation"][0].startswith("digits: 1 → 2")
        assert (await ask.post("/v1/rollouts/digits/fly", headers=admin)).status_code == 400
        assert (await ask.post("/v1/rollouts/digits/abort")).status_code == 403
        other = await ask.post("/v1/rollouts/digits%2Fabort", headers=admin, json={"to": 2})
        assert (other.status_code, "no model with a / in its name" in other.json()["detail"]) == (400, True)
        assert scene.rollout.state.phase is Phase.CANARY
        aborted = await ask.post("/v1/rollouts/digits/abort", headers=admin)
        assert aborted.json()["reason"] == "abort was requested by operator"
        rollout = await scene.until_finished()
        assert rollout.state.phase is Phase.ROLLED_BACK
        past = (await ask.get("/v1/rollouts/digits/history", headers=admin)).json()["rollouts"]
        assert [each["phase"] for each in past] == ["rolled_back"]
        one = f"/v1/rollouts/digits/history/{rollout.id}"
        assert (await ask.get(one, headers=admin)).json()["state"]["phase"] == "rolled_back"
        assert (await ask.get(one)).status_code == 403
        none = await ask.get("/v1/rollouts/digits/history/none", headers=admin)
        assert (none.status_code, "had no rollout none" in none.json()["detail"]) == (404, True)


async def test_a_record_that_cannot_be_read_is_listed_with_the_reason(tmp_path: Path) -> None:
    path, admin, caller = keys_file(tmp_path)
    store = tmp_path / "store"
    async with scene_over(store, VersionedReplica(), headers=caller, keys_file=path) as scene:
        scene.begin(HELD)
        (store / "flowers.json").write_text("{")
        listed = (await scene.client.get("/v1/rollouts", headers=admin)).json()
        assert [each["model"] for each in listed["rollouts"]] == ["digits"]
        (unreadable,) = listed["unreadable"]
        why = 'what is stored of model "flowers" cannot be read, and it stays as it is: repair the record'
        assert (unreadable["model"], unreadable["detail"][: len(why)]) == ("flowers", why)
        async with grpc.aio.insecure_channel(scene.running.grpc_address) as channel:
            request, response = protos.methods(protos.ROLLOUTS)["List"]
            stub: Any = channel.unary_unary(
                f"/{protos.ROLLOUTS}/List",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
            over_grpc = await stub(request(), metadata=tuple(admin.items()), timeout=20)
            assert [each.model for each in over_grpc.rollouts] == ["digits"]
            assert [{"model": each.model, "detail": each.detail} for each in over_grpc.unreadable] == [
                unreadable
            ]


async def test_feedback_over_http_reaches_the_evidence(tmp_path: Path) -> None:
    async with scene_over(tmp_path, VersionedReplica()) as scene:
        plan = HELD | {"criteria": FAST["criteria"] | {"accuracy": {"required": False}}}
        scene.begin(plan)
        await scene.reached(Phase.CANARY)
        answer = await scene.client.post("/v1/models/digits:classify", content=PICTURES[3], headers=PNG)
        given = answer.json()["results"][0]
        feedback = {"prediction_id": given["prediction_id"], "label": "class-4"}
        assert (await scene.client.post("/v1/feedback", json=feedback)).json() == {"status": "accepted"}
        forged = {"prediction_id": "abc.def", "label": "x"}
        assert (await scene.client.post("/v1/feedback", json=forged)).status_code == 400
        batch = await scene.client.post("/v1/feedback", json={"feedback": [feedback, forged]})
        assert [each["status"] for each in batch.json()["results"]] == ["duplicate", "refused"]
        assert (await scene.client.post("/v1/feedback", json={"feedback": []})).status_code == 400
        for body, fault in (
            (
                {"prediction_id": 5},
                "body.prediction_id: input should be a valid string, got 5; body.label: field",
            ),
            ({"feedback": {}}, "body.feedback: input should be a valid list"),
            ({"feedback": [{"prediction_id": "x"}]}, "body.feedback[0].label: field required"),
        ):
            bad = await scene.client.post("/v1/feedback", json=body)
            assert (bad.status_code, bad.json()["detail"][: len(fault)]) == (400, fault)
        torn = await scene.client.post(
            "/v1/feedback", content=b'{"feedback": [', headers={"content-type": "application/json"}
        )
        assert torn.status_code == 400
        assert torn.json()["detail"] == "the body is not JSON: Expecting value at character 14"
        async with asyncio.timeout(60):
            while True:
                accuracy = scene.rollout.evidence.criteria["accuracy"]
                if float(accuracy.candidate_n) + float(accuracy.stable_n) == 1.0:
                    break
                await asyncio.sleep(0.01)
        assert float(accuracy.candidate_bad) + float(accuracy.stable_bad) == 1.0


async def test_a_rollout_is_run_over_grpc(tmp_path: Path) -> None:
    path, admin, caller = keys_file(tmp_path)
    async with scene_over(tmp_path / "store", VersionedReplica(), headers=caller, keys_file=path) as scene:
        async with grpc.aio.insecure_channel(scene.running.grpc_address) as channel:

            async def call(method: str, key: dict[str, str], **fields: Any) -> Any:
                request, response = protos.methods(protos.ROLLOUTS)[method]
                stub: Any = channel.unary_unary(
                    f"/{protos.ROLLOUTS}/{method}",
                    request_serializer=request.SerializeToString,
                    response_deserializer=response.FromString,
                )
                return await stub(request(**fields), metadata=tuple(key.items()), timeout=20)

            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call("Start", caller, model="digits", to=2)
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            started = await call("Start", admin, model="digits", to=2, plan=json.dumps(HELD))
            assert (started.stable, started.candidate, started.phase) == (1, 2, "pending")
            await scene.reached(Phase.CANARY)
            (listed,) = (await call("List", admin)).rollouts
            assert (listed.phase, listed.weight) == ("canary", 0.5)
            whole = await call("Get", admin, model="digits")
            assert json.loads(whole.record_json)["candidate"] == 2
            (past,) = (await call("List", admin, model="digits")).rollouts
            assert past.id == listed.id == (await call("Get", admin, model="digits", id=listed.id)).id
            with pytest.raises(grpc.aio.AioRpcError) as missing:
                await call("Get", admin, model="digits", id="none")
            assert missing.value.code() is grpc.StatusCode.NOT_FOUND
            answer = await scene.client.post("/v1/models/digits:classify", content=PICTURES[3], headers=PNG)
            id_ = answer.json()["results"][0]["prediction_id"]
            told = [{"prediction_id": id_, "label": "class-3"}, {"prediction_id": "x", "label": "y"}]
            results = (await call("Feedback", caller, predictions=told)).results
            assert [each.status for each in results] == ["accepted", "refused"]
            assert results[1].error.kind == "invalid-input"
            assert (await call("Order", admin, model="digits", command="promote")).phase == "promoting"
        assert (await scene.until_finished()).state.phase is Phase.PROMOTED


@pytest.mark.parametrize("said", [{}, {"content-type": "application/x-www-form-urlencoded"}])
async def test_json_of_which_nothing_is_said_is_read(tmp_path: Path, said: dict[str, str]) -> None:
    # As `curl -d` sends it if no header is given.
    path, admin, caller = keys_file(tmp_path)
    async with scene_over(tmp_path / "store", VersionedReplica(), headers=caller, keys_file=path) as scene:
        asked = json.dumps({"to": 2, "plan": HELD}).encode()
        started = await scene.client.post("/v1/rollouts/digits", headers=admin | said, content=asked)
        assert (started.status_code, started.json()["candidate"]) == (201, 2)
        told = b'{"feedback": [{"prediction_id": "x", "label": "y"}]}'
        answer = await scene.client.post("/v1/feedback", headers=said, content=told)
        assert [each["status"] for each in answer.json()["results"]] == ["refused"]


async def test_another_content_type_than_json_is_told_as_that(tmp_path: Path) -> None:
    async with scene_over(tmp_path, VersionedReplica()) as scene:
        told = b'{"prediction_id": "x", "label": "y"}'
        for said in ("text/plain", "image/png", "application/jsonish"):
            answer = await scene.client.post("/v1/feedback", content=told, headers={"content-type": said})
            text = f'the content type is "{said}"; supported is application/json'
            assert (answer.status_code, answer.json()["detail"]) == (415, text)
        for said in ("application/json; charset=utf-8", "application/vnd.example+json"):
            answer = await scene.client.post("/v1/feedback", content=told, headers={"content-type": said})
            assert "not a prediction id of this service" in answer.json()["detail"]


async def test_a_gateway_without_rollouts_says_so() -> None:
    async with running(FakeReplica()) as replica, gateway_over(replica) as (_, client):
        refused = await client.post("/v1/feedback", json={"prediction_id": "a.b", "label": "x"})
        assert refused.status_code == 409 or refused.status_code == 400
        assert "without rollouts" in refused.json()["detail"]
        keyless = await client.get("/v1/rollouts")
        assert keyless.status_code == 403
        assert "`sluice keys add NAME --scope admin`, and start it with --keys" in keyless.json()["detail"]
        answer = await client.post("/v1/models/digits:classify", content=PICTURES[3], headers=PNG)
        assert "prediction_id" not in answer.json()["results"][0]
