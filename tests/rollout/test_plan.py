from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from serving.errors import InvalidInput
from serving.rollout.judge import alphas
from serving.rollout.plan import Plan
from serving.rollout.plan_file import load_plan, parse_plan

YAML = """\
alpha: 0.02
shadow:
  share: 0.5
canary:
  - weight: 0.1
    min_time_s: 30
  - {weight: 0.5}
criteria:
  errors: {margin: 1.0}
  latency: null
quiet_hours:
  - {days: [sat, sun], start: "22:00", end: "06:00", timezone: Europe/Berlin}
"""

TOML = """\
alpha = 0.02

[shadow]
share = 0.5

[[canary]]
weight = 0.1
min_time_s = 30

[[canary]]
weight = 0.5

[criteria.errors]
margin = 1.0
"""


def test_an_empty_plan_is_the_default_plan() -> None:
    assert parse_plan("") == Plan()
    assert parse_plan("", toml=True) == Plan()


def test_yaml_and_toml_say_the_same() -> None:
    plan = parse_plan(YAML)
    assert plan.canary[0].min_time_s == 30.0
    assert plan.canary[1].min_time_s == Plan().canary[0].min_time_s
    assert plan.criteria.latency is None
    assert plan.quiet_hours[0].timezone == "Europe/Berlin"
    toml = parse_plan(TOML, toml=True)
    assert (toml.alpha, toml.shadow, toml.canary) == (plan.alpha, plan.shadow, plan.canary)
    assert toml.criteria.errors == plan.criteria.errors


def test_a_criterion_that_names_one_field_keeps_the_defaults_of_the_others() -> None:
    plan = parse_plan("criteria: {latency: {limit_s: 0.2}}")
    assert plan.criteria.latency is not None
    default = Plan().criteria.latency
    assert default is not None
    assert plan.criteria.latency.max_overall_rate == default.max_overall_rate
    assert plan.criteria.errors == Plan().criteria.errors


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("alpha: 3\n", ["plan:1: alpha: input should be less than 1, got 3"]),
        (
            "alpha: 0.01\nshadow:\n  share: 2\n  shares: 1\n",
            ["plan:3: shadow.share: ", "plan:4: shadow.shares: there is no such field; there are: share, "],
        ),
        (
            "canary:\n- weight: 0.5\n- weight: 0.1\n",
            ["plan:1: canary: weights must grow, but 0.1 follows 0.5"],
        ),
        ("canary:\n- weight: 0.5\n- {}\n", ["plan:3: canary[1].weight: field required"]),
        ("canary: []\n", ["plan:1: canary: "]),
        (  # that nothing is left of the list is no second fault
            "canary:\n- weights: 0.5\n",
            ["plan:2: canary[0].weight: field required", "plan:2: canary[0].weights: there is no such field"],
        ),
        (
            "criteria:\n  latency:\n    limt_s: 0.2\n",
            ["plan:3: criteria.latency.limt_s: there is no such field"],
        ),
        ("criteria: {errors: null, latency: null}\n", ["plan:1: criteria: no criterion is required"]),
        (
            "quiet_hours:\n- start: '25:00'\n  end: '06:00'\n  timezone: Mars\n",
            ["plan:2: quiet_hours[0].start: ", 'plan:4: quiet_hours[0].timezone: "Mars" is not a time zone'],
        ),
        (
            "quiet_hours:\n- start: 22:00\n  end: '24:00'\n  days: []\n",
            [
                "plan:4: quiet_hours[0].days: ",
                'plan:2: quiet_hours[0].start: not a time of day; write one from "00:00" to "23:59"',
                "plan:3: quiet_hours[0].end: not a time of day; ",
            ],
        ),
        (
            "limits: {canary_s: 1799}\n",
            ["plan:1: plan: limits.canary_s is 1799 s, and the least times (min_time_s) within it come"],
        ),
        ("shadow: {min_time_s: 3601}\n", ["plan:1: plan: limits.shadow_s is 3600 s, and "]),
        (
            "canary: [0.1]\n",
            ["plan:1: canary[0]: this is a mapping of fields; there are: weight, min_time_s, min_requests"],
        ),
        ("criteria: {errors: {alpha_weight: 1e+308}}\n", ["plan:1: criteria.errors.alpha_weight: "]),
        ("alpha: 1.0e-320\n", ["plan:1: alpha: input should be greater than or equal to 0.0001"]),
        ("alpha: 0.01\nalpha: 0.02\n", ["plan:2: alpha is written twice, first on 1"]),
        ("alpha: [1\n", ["plan:2: not YAML: "]),
        ("- 1\n", ["plan:1: a plan is a mapping of fields, not a list"]),
        ("alpha: .nan\n", ["plan:1: alpha: "]),
        ("webhook: ftp://x\n", ["plan:1: webhook: "]),
    ],
)
def test_faults_in_yaml_point_at_their_lines(text: str, messages: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_plan(text)
    lines = caught.value.message.splitlines()
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alpha = 3\n", "plan:1: alpha: "),
        ("alpha = 0.1\n[[canary]]\nweight = 0.1\n[[canary]]\nweight = 'x'\n", "plan:5: canary[1].weight: "),
        ("[criteria.latency]\nlimt_s = 3\n", "plan:2: criteria.latency.limt_s: "),
        ("shadow.share = 7\n", "plan:1: shadow.share: "),
        ("alpha = \n", "plan:1: not TOML: "),
    ],
)
def test_faults_in_toml_point_at_their_lines(text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_plan(text, toml=True)
    assert caught.value.message.startswith(message)


def test_files_that_are_no_plans_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot read the plan: No such file"):
        load_plan(tmp_path / "missing.yaml")
    for none in ("missing", "/dev/zero"):
        with pytest.raises(InvalidInput, match=r"is a \.yaml or \.toml file, not one without a suffix"):
            load_plan(Path(none))
    (tmp_path / "plan.json").touch()
    with pytest.raises(InvalidInput, match=r"a plan is a \.yaml or \.toml file"):
        load_plan(tmp_path / "plan.json")
    binary = tmp_path / "plan.toml"
    binary.write_bytes(b"alpha = 0.1\n\xff\n")
    with pytest.raises(InvalidInput, match=r"plan\.toml:2: not UTF-8"):
        load_plan(binary)
    binary.write_bytes(b"#" * 300_000)
    with pytest.raises(InvalidInput, match="too large for a plan: it has more than 262144 bytes"):
        load_plan(binary)


def test_a_plan_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(TOML)
    assert load_plan(path) == parse_plan(TOML, toml=True)


def test_limits_that_just_suffice_are_taken() -> None:
    parse_plan("limits: {canary_s: 1800}\nshadow: {min_time_s: 3600}\n")
    parse_plan("shadow: {share: 0, min_time_s: 3601}\n")


def test_the_digest_tells_plans_apart() -> None:
    assert Plan().digest() == Plan().digest()
    assert Plan().digest() != Plan(alpha=0.02).digest()


def test_a_record_keeps_its_plan_to_the_letter() -> None:
    values = Plan(alpha=0.02).model_dump(mode="json")
    assert Plan.of_record(values) == Plan(alpha=0.02)
    assert Plan.of_record(values).unknown == ()
    values["colour"] = "red"
    values["shadow"]["sizes"] = [1, 2]
    values["canary"][1]["slowly"] = True
    del values["quiet_hours"], values["limits"]["drain_s"]
    plan = Plan.of_record(values)
    assert plan.unknown == ("shadow.sizes", "canary.1.slowly", "colour")
    assert (plan.alpha, plan.quiet_hours, plan.limits.drain_s) == (0.02, (), Plan().limits.drain_s)
    assert plan.to_json() == values
    assert (
        plan.digest() == Plan.of_record(json.loads(json.dumps(values))).digest() != Plan(alpha=0.02).digest()
    )


def test_a_rule_of_today_is_for_plans_of_today() -> None:
    values = Plan().model_dump(mode="json")
    values["limits"]["canary_s"] = 60.0
    with pytest.raises(ValidationError, match=r"limits\.canary_s is 60 s"):
        Plan.model_validate(values)
    assert Plan.of_record(values).limits.canary_s == 60.0
    values["canary"][0]["weight"] = 7.0
    with pytest.raises(ValidationError, match="less than 1"):
        Plan.of_record(values)


@pytest.mark.parametrize("text", ["", "shadow: {share: 0}", "criteria: {accuracy: null}"])
def test_the_guards_share_alpha(text: str) -> None:
    plan = parse_plan(text)
    levels = alphas(plan)
    assert sum(levels.values()) == pytest.approx(plan.alpha)
    assert ("agreement" in levels) == (plan.shadow.share > 0)
