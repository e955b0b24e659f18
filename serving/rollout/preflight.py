"""What a candidate must pass before it gets a request: signatures, labels, its self-test, a warm answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from serving import protos, tensors
from serving.backends.tfserving import TensorFlowServing
from serving.errors import InvalidInput, SluiceError
from serving.rollout.plan import Preflight
from serving.rollout.verdict import Outcome, Reason, Verdict

SELF_TEST = "self_test"
# Golden images are requested by index; a model that has fewer answers with its last one for the rest.
_SELF_TEST_IMAGES = 8
_CALL_TIMEOUT_S = 60.0


def incompatible(stable: Mapping[str, Any], candidate: Mapping[str, Any]) -> list[str]:
    """Why the candidate could not answer callers of the stable version: by signature, [] if it can.

    Every signature of stable must be there, with the same inputs and at least the same outputs, of the same
    types and shapes; if stable leaves a rank open, any shape will do.
    """
    found = []
    for name, before in stable.items():
        after = candidate.get(name)
        if after is None:
            found.append(f'it has no signature "{name}"')
            continue
        for side, exact in (("inputs", True), ("outputs", False)):
            found += _differences(name, side, getattr(before, side), getattr(after, side), exact=exact)
    return found


def _differences(
    signature: str, side: str, before: Mapping[str, Any], after: Mapping[str, Any], *, exact: bool
) -> list[str]:
    found = [
        f'{signature}: {side} lack "{name}"' if name not in after else difference
        for name in before
        if (difference := _difference(signature, name, before[name], after.get(name)))
    ]
    if exact:
        found += [
            f'{signature}: {side} have "{name}", which callers do not send'
            for name in after
            if name not in before
        ]
    return found


def _difference(signature: str, name: str, before: Any, after: Any) -> str | None:
    if after is None:
        return "missing"
    if before.dtype != after.dtype:
        return f'{signature}: "{name}" has another type ({after.dtype} instead of {before.dtype})'
    shapes = [[dim.size for dim in info.tensor_shape.dim] for info in (before, after)]
    if not before.tensor_shape.unknown_rank and shapes[0] != shapes[1]:
        return f'{signature}: "{name}" has shape {shapes[1]} instead of {shapes[0]}'
    return None


def relabelled(stable: Sequence[str], candidate: Sequence[str]) -> str | None:
    """How the candidate's labels differ from stable's, None if they do not."""
    if list(stable) == list(candidate):
        return None
    if sorted(stable) == sorted(candidate):
        return "it names the same classes in another order"
    missing = sorted(set(stable) - set(candidate))
    return f"it does not name the classes {', '.join(missing[:5])}" if missing else "it names other classes"


async def self_tested(
    api: TensorFlowServing,
    model: str,
    version: int,
    limits: Preflight,
    clock: Callable[[], float] = time.monotonic,
) -> list[Reason]:
    """What speaks against the version on this replica: its golden images' answers, and its latency once warm.

    Raises:
        SluiceError: The replica cannot be reached at the moment.
    """
    request = protos.PredictRequest()
    request.model_spec.name = model
    request.model_spec.version.value = version
    request.model_spec.signature_name = SELF_TEST
    index = np.arange(_SELF_TEST_IMAGES, dtype=np.int32)
    request.inputs["index"].CopyFrom(tensors.to_proto(index))
    found = []
    await api.predict(request, _CALL_TIMEOUT_S)
    started = clock()
    response = await api.predict(request, _CALL_TIMEOUT_S)
    duration_s = clock() - started
    off = _largest_difference(response)
    if off is None or not off <= limits.self_test_tolerance:
        values = {} if off is None else {"difference": off, "tolerance": limits.self_test_tolerance}
        told = "its answers cannot be read" if off is None else f"off by {off:.3g}"
        text = f"self-test failed on {api.address}: {told}; {limits.self_test_tolerance:g} is allowed"
        found.append(Reason("preflight.self-test", text, values))
    if duration_s > limits.max_warm_latency_s:
        text = f"a warm answer took {duration_s:.2f} s on {api.address}, over {limits.max_warm_latency_s:g} s"
        values = {"duration_s": duration_s, "limit_s": limits.max_warm_latency_s}
        found.append(Reason("preflight.slow", text, values))
    return found


def _largest_difference(response: Any) -> float | None:
    """Absolute for numbers up to one; in a column with larger ones, relative to its largest, as at export."""
    try:
        expected, actual = (tensors.from_proto(response.outputs[name]) for name in ("expected", "actual"))
        scale = np.maximum(1.0, np.abs(expected).max(axis=0))
        return float((np.abs(expected - actual) / scale).max())
    except (InvalidInput, ValueError, TypeError):
        return None


def preflight_verdict(against: Mapping[str, list[Reason] | SluiceError], least: int) -> Verdict:
    """The verdict over what was found on each replica that has the candidate.

    A replica that could not be reached says nothing; while fewer than `least` could be, it is to wait.
    """
    reasons = [reason for found in against.values() if isinstance(found, list) for reason in found]
    if reasons:
        return Verdict(Outcome.FAIL, tuple(reasons))
    passed = [address for address, found in against.items() if isinstance(found, list)]
    if len(passed) < max(1, least):
        failed = next((found for found in against.values() if isinstance(found, SluiceError)), None)
        why = failed.message if failed else "no replica has the candidate"
        return Verdict(Outcome.WAIT, (Reason("preflight.waiting", f"the self-test could not be run: {why}"),))
    text = f"signatures and labels fit, and the self-test passed on {len(passed)} replicas"
    return Verdict(Outcome.PASSED, (Reason("preflight.passed", text, {"replicas": float(len(passed))}),))
