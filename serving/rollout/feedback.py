"""Feedback without a lookup: ids of predictions that carry, signed, what feedback on them needs.

An id is base64url of a JSON list (model, version, label, routed, time, nonce) and of the first 16 bytes of
its HMAC-SHA256 (RFC 2104). The key is in the store that the gateways share, so any of them takes any id.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson

from serving.errors import FailedPrecondition, InvalidInput
from serving.rollout.steering import Steering

TTL_S = 7 * 86400.0
_KEY_BYTES = 32
_SIGNATURE_BYTES = 16
_MOST_ID_CHARACTERS = 1000
# Ids that were redeemed are remembered here, so that a repeated message counts once.
_REMEMBERED = 100_000

_BAD = "this is no prediction id of this service, or it was changed"


@dataclass(frozen=True, slots=True)
class Claim:
    """What an id says: which version named which label, whether a rollout chose it, and when (Unix time)."""

    model: str
    version: int
    label: str
    routed: bool
    at: float


def shared_key(folder: Path) -> bytes:
    """The key in a folder; made by whichever gateway comes first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "feedback.key"
    with suppress(FileExistsError):
        temporary = folder / f".feedback.{os.getpid()}.{secrets.token_hex(4)}"
        temporary.touch(mode=0o600)
        temporary.write_bytes(secrets.token_bytes(_KEY_BYTES))
        try:
            path.hardlink_to(temporary)
        finally:
            temporary.unlink()
    return path.read_bytes()


class Receipts:
    """Issues ids, and takes feedback on them.

    Args:
        key: The signing key.
        steering: Where feedback is counted.
        wall: The time of day, in Unix seconds.
    """

    def __init__(self, key: bytes, steering: Steering, wall: Callable[[], float] = time.time) -> None:
        self._key = key
        self._steering = steering
        self._wall = wall
        self._redeemed: OrderedDict[bytes, str] = OrderedDict()

    def issue(self, model: str, version: int, label: str, *, routed: bool) -> str:
        """The id of one prediction."""
        payload = orjson.dumps([model, version, label, routed, int(self._wall()), secrets.token_hex(6)])
        return f"{_encode(payload)}.{_encode(self._sign(payload))}"

    def read(self, prediction_id: str) -> Claim:
        """What an id says.

        Raises:
            InvalidInput: It is forged, or no id at all.
            FailedPrecondition: It has expired.
        """
        payload = self._verified(prediction_id)
        claim = Claim(*orjson.loads(payload)[:5])
        age_s = self._wall() - claim.at
        if age_s > TTL_S:
            days, most = age_s / 86400, TTL_S / 86400
            raise FailedPrecondition(
                f"the prediction is {days:.0f} days old; feedback is taken for {most:.0f}"
            )
        return claim

    def redeem(self, prediction_id: str, label: str) -> Literal["accepted", "duplicate"]:
        """Takes the true label of a prediction; the same id counts once.

        Raises:
            InvalidInput, FailedPrecondition: As `read` does; or the label is none.
        """
        if not label or len(label) > _MOST_ID_CHARACTERS:
            raise InvalidInput("the label is empty or too long; send the true label of the image")
        claim = self.read(prediction_id)
        digest = hashlib.blake2b(prediction_id.encode(), digest_size=16).digest()
        if digest in self._redeemed:
            return "duplicate"
        self._redeemed[digest] = label
        if len(self._redeemed) > _REMEMBERED:
            self._redeemed.popitem(last=False)
        if claim.routed:
            self._steering.labelled(claim.model, claim.version, wrong=label != claim.label)
        return "accepted"

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
