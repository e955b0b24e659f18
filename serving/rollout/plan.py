"""What a rollout may do and when: the plan a person writes, checked before anything moves.

A plan is a small YAML or TOML file; every field has a default, and an empty plan is a good one. Shares and
rates lie between 0 and 1, durations are in seconds.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from datetime import UTC, tzinfo
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0, lt=1.0)]
Level = Annotated[float, Field(ge=0.0001, lt=1.0)]
Seconds = Annotated[float, Field(ge=0.0, le=30 * 86400.0)]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Days = Annotated[tuple[Weekday, ...], Field(min_length=1)]


# The validation context for a plan that is read from a record.
_OF_RECORD = {"of_record": True}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Shadow(_Section):
    """Copies of requests that the candidate answers for comparison before it answers anyone."""

    # A fifth of the traffic: a replica with room for the candidate has room for that.
    share: Share = 0.2
    # A wholly broken class among ten shows within about fifty of its images.
    min_samples: Annotated[int, Field(ge=1)] = 500
    min_time_s: Seconds = 120.0
    # Two good versions of one classifier disagree on a few images in a hundred, rarely on ten.
    min_agreement: Rate = 0.9
    min_class_agreement: Rate = 0.7


class Step(_Section):
    """One weight of the canary, and what it takes at least to go on from it."""

    weight: Rate
    min_time_s: Seconds = 300.0
    # Requests to the candidate; a step to which nobody was routed has shown nothing.
    min_requests: Annotated[int, Field(ge=0)] = 50


class Criterion(_Section):
    """One kind of bad event, and how much worse the candidate may be.

    The candidate is good enough when its relative risk is shown to be below 1 + margin, or its rate to be
    below `acceptable_rate`, whichever the traffic allows: a service that never fails yields no bad events to
    compare.
    """

    margin: Annotated[float, Field(gt=0.0, le=10.0)] = 0.5
    acceptable_rate: Rate | None = None
    # Of all requests of both arms: above it, loading the candidate may itself be the harm. It is outside
    # alpha, since it compares nothing.
    max_overall_rate: Rate | None = None
    # This criterion's share of alpha, relative to the others'.
    alpha_weight: Annotated[float, Field(ge=0.001, le=1000.0)] = 1.0
    # Whether a promotion waits for it; if not, it only guards.
    required: bool = True


class Errors(Criterion):
    """The model or the replica failed: a failed call is one bad event, however many rows were in it."""

    acceptable_rate: Rate | None = 0.001
    max_overall_rate: Rate | None = 0.25
    # Errors get most of alpha: they are the most common fault, and are found soonest with it.
    alpha_weight: Annotated[float, Field(ge=0.001, le=1000.0)] = 7.0


class Latency(Criterion):
    """Slower than a limit: the one given, or the stable version's own 99th percentile before the rollout."""

    limit_s: Annotated[float, Field(gt=0.0)] | None = None
    # By the limit's own definition, one in a hundred of stable's requests was slow before the rollout.
    acceptable_rate: Rate | None = 0.01
    max_overall_rate: Rate | None = 0.5


class Accuracy(Criterion):
    """Feedback says that the label was wrong. It may never come, so by default it only guards."""

    required: bool = False


class Criteria(_Section):
    """What counts as bad. A criterion that is null is not looked at."""

    errors: Errors | None = Field(default_factory=Errors)
    latency: Latency | None = Field(default_factory=Latency)
    accuracy: Accuracy | None = Field(default_factory=Accuracy)

    @model_validator(mode="after")
    def _something_decides(self) -> Criteria:
        if not any(criterion.required for criterion in self.named().values()):
            raise ValueError("no criterion is required: nothing could ever show that a version is good")
        return self

    def named(self) -> dict[str, Criterion]:
        """The criteria that are looked at, by name, in a fixed order."""
        found = {"errors": self.errors, "latency": self.latency, "accuracy": self.accuracy}
        return {name: criterion for name, criterion in found.items() if criterion is not None}


class Limits(_Section):
    """How long each part may take before the rollout gives up on it."""

    load_s: Seconds = 900.0
    preflight_s: Seconds = 300.0
    shadow_s: Seconds = 3600.0
    canary_s: Seconds = 6 * 3600.0
    promote_s: Seconds = 900.0
    # Requests that were routed before a version is unloaded get this long to finish.
    drain_s: Seconds = 10.0
    # Without counts (Prometheus or a gateway is out of reach) nothing moves; after this it pauses.
    blind_s: Seconds = 600.0


class Preflight(_Section):
    """What the candidate must show on each replica before it gets a request."""

    # The largest difference of a probability from the one recorded at export; GPUs differ in the fourth
    # digit. For outputs beyond one it is relative to the largest.
    self_test_tolerance: Annotated[float, Field(gt=0.0)] = 0.005
    # A first request may compile kernels; if the second one is slow, the version is slow.
    max_warm_latency_s: Annotated[float, Field(gt=0.0)] = 5.0
    # The share of the replicas that must have the candidate before it gets traffic; the rest may follow.
    min_replicas: Share = 0.5


_TIME_OF_DAY = r"^([01]\d|2[0-3]):[0-5]\d$"


def zone(name: str) -> tzinfo:
    """The time zone with this IANA name; UTC needs no data base, the others the system's or `tzdata`."""
    return UTC if name == "UTC" else ZoneInfo(name)


class QuietHours(_Section):
    """Times at which nothing grows: from `start` to `end`, a whole day if they are the same.

    The days are those on which it starts. A rollback never waits.
    """

    days: Days = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    start: Annotated[str, Field(pattern=_TIME_OF_DAY)]
    end: Annotated[str, Field(pattern=_TIME_OF_DAY)]
    timezone: str = "UTC"

    @field_validator("start", "end", mode="before")
    @classmethod
    def _time_of_day(cls, value: object) -> object:
        # YAML reads a bare 22:00 as a number in base 60.
        if not isinstance(value, str) or re.fullmatch(_TIME_OF_DAY, value) is None:
            raise ValueError('not a time of day; write one from "00:00" to "23:59", in quotation marks')
        return value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            zone(value)
        except (KeyError, OSError, ValueError) as error:
            raise ValueError(f'"{value}" is not a time zone; write one like "Europe/Berlin"') from error
        return value


_DEFAULT_STEPS = (
    # Small first: a caller who meets a bad version teaches more at one percent than at fifty.
    Step(weight=0.01),
    Step(weight=0.05, min_time_s=600.0),
    Step(weight=0.25),
    Step(weight=0.5, min_time_s=600.0),
)


class Plan(_Section):
    """A whole rollout. `Plan()` is the default plan."""

    # The bound on rolling back a version that is no worse than stable under every criterion.
    alpha: Level = 0.01
    # The bound on promoting a version that is worse than the margin under some criterion.
    alpha_promote: Level = 0.05
    shadow: Shadow = Field(default_factory=Shadow)
    canary: Annotated[tuple[Step, ...], Field(min_length=1, max_length=50)] = _DEFAULT_STEPS
    criteria: Criteria = Field(default_factory=Criteria)
    # With this much evidence of harm (an e-value) the weight stays where it is, until there is less, or
    # enough.
    hold_at: Annotated[float, Field(gt=1.0)] = 3.0
    preflight: Preflight = Field(default_factory=Preflight)
    limits: Limits = Field(default_factory=Limits)
    # Even "promote" pauses while something is held back: a suspicion is not a lack of evidence.
    on_inconclusive: Literal["pause", "rollback", "promote"] = "pause"
    on_new_version: Literal["hold", "rollout"] = "hold"
    quiet_hours: tuple[QuietHours, ...] = ()
    # How many replicas may be without either version at once. None: both versions are held side by side, and
    # nothing is ever unavailable. 1: fleets that are tight on memory swap one replica at a time.
    max_unavailable: Annotated[int, Field(ge=1)] | None = None
    webhook: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None

    # The record's own values, if this release of Sluice would write them differently.
    _recorded: dict[str, Any] | None = PrivateAttr(default=None)

    @field_validator("canary")
    @classmethod
    def _weights_grow(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        for before, after in itertools.pairwise(steps):
            if after.weight <= before.weight:
                raise ValueError(f"weights must grow, but {after.weight:g} follows {before.weight:g}")
        return steps

    @model_validator(mode="after")
    def _limits_leave_time(self, info: ValidationInfo) -> Plan:
        if info.context is _OF_RECORD:
            return self
        least = {"shadow_s": self.shadow.min_time_s, "canary_s": sum(step.min_time_s for step in self.canary)}
        if self.shadow.share == 0.0:
            del least["shadow_s"]
        for name, least_s in least.items():
            limit_s = getattr(self.limits, name)
            if limit_s < least_s:
                raise ValueError(
                    f"limits.{name} is {limit_s:g} s, and the least times (min_time_s) within it come to "
                    f"{least_s:g} s: raise the one, or lower the others"
                )
        return self

    @classmethod
    def of_record(cls, values: Any) -> Self:
        """The plan in a rollout's record, whichever release of Sluice wrote it.

        A rollout keeps the plan that it began with. Fields that this release does not know are kept as they
        are (`unknown` names them), fields that only this release knows get their defaults, and of its rules
        only those apply that a plan must keep for anything to be decided by it.

        Raises:
            ValidationError: a value is one that no plan can have.
        """
        plan = cls.model_validate(values, extra="ignore", context=_OF_RECORD)
        known = plan.model_dump(mode="json")
        if known != values:
            plan._recorded = _written(values, known)
        return plan

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values; if it was read from a record, the record's own."""
        return self.model_dump(mode="json") if self._recorded is None else self._recorded

    @property
    def unknown(self) -> tuple[str, ...]:
        """The fields of its record that this release of Sluice does not know, such as `shadow.colour`."""
        return () if self._recorded is None else tuple(_beyond(self._recorded, self.model_dump(mode="json")))

    def digest(self) -> str:
        """A hash of everything in the plan, stored with each decision."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _written(values: Any, known: Any) -> Any:
    """`values`, with known fields in the form that `known` gives them: a store may turn 60.0 into 60."""
    if isinstance(values, dict) and isinstance(known, dict):
        return {name: _written(each, known[name]) if name in known else each for name, each in values.items()}
    if isinstance(values, list) and isinstance(known, list):
        return [_written(each, other) for each, other in zip(values, known, strict=True)]
    return known


def _beyond(values: Any, known: Any, *at: str) -> Iterator[str]:
    """The paths, from the root, of fields that are in `values` but not in `known`."""
    if isinstance(values, dict) and isinstance(known, dict):
        for name, value in values.items():
            if name in known:
                yield from _beyond(value, known[name], *at, name)
            else:
                yield ".".join((*at, name))
    elif isinstance(values, list) and isinstance(known, list):
        for index, (value, other) in enumerate(zip(values, known, strict=True)):
            yield from _beyond(value, other, *at, str(index))
