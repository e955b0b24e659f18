"""Feedback without a lookup: ids of predictions that carry, signed, what feedback on them needs.

An id is base64url of a JSON list (model, version, label, routed, time, nonce, copied) and of the first 16
bytes of its HMAC-SHA256 (RFC 2104). The key is in the store that the gateways share, so any of them accepts
any id.

If an image was copied to the candidate, the nonce is the copy's name and the image's place in it, so that
feedback also finds the candidate's answer, and judges both as a pair.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson

from serving.errors import FailedPrecondition, InvalidInput, SluiceError
from serving.rollout.memory import Memory, Named
from serving.rollout.steering import Steering

TTL_S = 7 * 86400.0
KEY_BYTES = 32
_SIGNATURE_BYTES = 16
_MOST_ID_CHARACTERS = 1000
# Predictions in one request of feedback, over HTTP and gRPC alike.
MOST_AT_ONCE = 1000

Status = Literal["accepted", "duplicate"]

_BAD = "this is not a prediction id of this service, or it was altered"


@dataclass(frozen=True, slots=True)
class Claim:
    """The contents of an id.

    Attributes:
        model: The model.
        version: The version that answered.
        label: What it named.
        routed: Whether a rollout chose the version.
        at: When, in Unix seconds.
        copy: The name of the copy that the candidate got, or empty.
        place: Which of the copy's images it is.
    """

    model: str
    version: int
    label: str
    routed: bool
    at: float
    copy: str = ""
    place: int = 0


def shared_key(folder: Path) -> bytes:
    """The key in a folder; made by whichever gateway comes first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "feedback.key"
    with suppress(FileExistsError):
        temporary = folder / f".feedback.{os.getpid()}.{secrets.token_hex(4)}"
        try:
            temporary.touch(mode=0o600)
            temporary.write_bytes(secrets.token_bytes(KEY_BYTES))
            path.hardlink_to(temporary)
        finally:
            temporary.unlink(missing_ok=True)
    return path.read_bytes()


class Receipts:
    """Issues ids, and takes feedback on them.

    Args:
        key: The signing key.
        steering: Where feedback is counted.
        memory: Which ids were redeemed, and how candidates answered copies.
        wall: The time of day, in Unix seconds.
    """

    def __init__(
        self, key: bytes, steering: Steering, memory: Memory, wall: Callable[[], float] = time.time
    ) -> None:
        self._key = key
        self._steering = steering
        self._memory = memory
        self._wall = wall

    def issue(self, model: str, version: int, label: str, *, routed: bool, copied: str = "") -> str:
        """The id of one prediction; `copied` is the name of the image's copy, if the candidate got one."""
        nonce = copied or secrets.token_hex(6)
        payload = orjson.dumps([model, version, label, routed, int(self._wall()), nonce, bool(copied)])
        return f"{_encode(payload)}.{_encode(self._sign(payload))}"

    def read(self, prediction_id: str) -> Claim:
        """The contents of an id.

        Raises:
            InvalidInput: It is forged, or not an id at all.
            FailedPrecondition: It has expired.
        """
        model, version, label, routed, at, nonce, *more = orjson.loads(self._verified(prediction_id))
        copy, _, place = nonce.partition("-") if more == [True] else ("", "", "")
        age_s = self._wall() - at
        if age_s > TTL_S:
            days, most = age_s / 86400, TTL_S / 86400
            raise FailedPrecondition(
                f"the prediction is {days:.0f} days old; feedback is accepted for {most:.0f}"
            )
        return Claim(model, version, label, routed, at, copy, int(place or 0))

    async def redeem(self, prediction_id: str, label: str) -> Status:
        """Takes the true label of a prediction; the same id counts once.

        Raises:
            InvalidInput, FailedPrecondition: As `read` does; or the label cannot be one.
            Unavailable: It cannot be known whether the id has counted already.
        """
        (result,) = await self.redeem_all([(prediction_id, label)])
        if isinstance(result, SluiceError):
            raise result
        return result

    async def redeem_all(self, feedback: Sequence[tuple[str, str]]) -> list[Status | SluiceError]:
        """Takes predictions with their true labels, each on its own; returns what became of each.

        Raises:
            Unavailable: It cannot be known which ids have counted already; none was taken.
        """
        claims = [self._claim(*each) for each in feedback]
        good = [
            (claim, id_) for claim, (id_, _) in zip(claims, feedback, strict=True) if isinstance(claim, Claim)
        ]
        kept = iter(await asyncio.to_thread(self._keep, good))
        statuses: list[Status | SluiceError] = []
        for claim, (_, label) in zip(claims, feedback, strict=True):
            if isinstance(claim, SluiceError):
                statuses.append(claim)
                continue
            new, named = next(kept)
            if new:
                self._count(claim, label, named)
            statuses.append("accepted" if new else "duplicate")
        return statuses

    def _claim(self, prediction_id: str, label: str) -> Claim | SluiceError:
        if not label or len(label) > _MOST_ID_CHARACTERS:
            return InvalidInput("the label is empty or too long; send the true label of the image")
        try:
            return self.read(prediction_id)
        except SluiceError as error:
            return error

    def _keep(self, claims: Sequence[tuple[Claim, str]]) -> list[tuple[bool, Named | None]]:
        """Whether each is new, and how the candidate answered its copy. May wait for a disk."""
        named = [self._memory.named(claim.copy) if claim.copy else None for claim, _ in claims]
        ids = [hashlib.blake2b(id_.encode(), digest_size=16).digest() for _, id_ in claims]
        return list(zip(self._memory.take(ids), named, strict=True))

    def _count(self, claim: Claim, label: str, named: Named | None) -> None:
        if not claim.routed:
            return
        wrong = label != claim.label
        if named is None or claim.place >= len(named.labels):
            self._steering.labelled(claim.model, claim.version, wrong=wrong, at=claim.at)
            return
        candidate_wrong = label != named.labels[claim.place]
        self._steering.labelled_both(
            claim.model, claim.version, named.version, stable_wrong=wrong, candidate_wrong=candidate_wrong
        )

    def _verified(self, prediction_id: str) -> bytes:
        parts = prediction_id.split(".")
        if len(parts) != 2 or len(prediction_id) > _MOST_ID_CHARACTERS:
            raise InvalidInput(_BAD)
        try:
            payload, signature = (_decode(part) for part in parts)
        except (binascii.Error, ValueError) as error:
            raise InvalidInput(_BAD) from error
        if not hmac.compare_digest(signature, self._sign(payload)):
            raise InvalidInput(_BAD)
        return payload

    def _sign(self, payload: bytes) -> bytes:
        return hmac.digest(self._key, payload, "sha256")[:_SIGNATURE_BYTES]


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
