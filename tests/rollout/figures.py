"""The simulated figures that rollouts are held to, ten thousand runs each: `python -m tests.rollout.figures`.

Takes some minutes; the tests check the same with fewer runs.
"""

from __future__ import annotations

from serving.rollout.plan import Plan
from serving.rollout.rules import Wald, simulate_rules
from serving.rollout.simulate import PROMOTED, ROLLED_BACK, Runs, simulate
from serving.rollout.traffic import Traffic

INCIDENTS = 1.0


def main(runs: int = 10_000) -> None:
    plan = Plan()
    canary_only = Plan.model_validate({"shadow": {"share": 0.0}})
    good = Traffic()
    shaken = Traffic(incidents_per_hour=INCIDENTS)
    margin = Traffic(candidate_error=good.stable_error * 1.5, candidate_slow=good.stable_slow * 1.5)
    for name, plan_, traffic in (
        ("as good", plan, good),
        ("as good, incidents", plan, shaken),
        ("as good, incidents, canary only", canary_only, shaken),
        ("worse by the margin", plan, margin),
        ("3x errors", plan, Traffic(candidate_error=0.015)),
        ("3x errors, canary only", canary_only, Traffic(candidate_error=0.015)),
        (
            "3x errors, canary only, incidents",
            canary_only,
            Traffic(candidate_error=0.015, incidents_per_hour=1),
        ),
        ("20x errors, canary only", canary_only, Traffic(candidate_error=0.1)),
        ("3x slow", plan, Traffic(candidate_slow=0.03)),
        ("as good, 20 requests/s", plan, Traffic(rps=20.0)),
    ):
        show(name, simulate(plan_, traffic, runs=runs, seed=1))
    for bad in (0.015, 0.1):
        wald = Wald("SPRT", 0.005, bad, plan.alpha, 0.01)
        traffic = Traffic(candidate_error=bad)
        show(f"Wald's SPRT, {bad / 0.005:g}x", simulate_rules([wald], plan, traffic, runs=runs, seed=1)[0])


def show(name: str, ended: Runs) -> None:
    back, forth = ended.share(ROLLED_BACK), ended.share(PROMOTED)
    print(
        f"{name:36s} rolled back {back.share:.4f} [{back.lower:.4f}, {back.upper:.4f}]"
        f"  promoted {forth.share:.4f} [{forth.lower:.4f}, {forth.upper:.4f}]"
        f"  exposed, rolled back: median {ended.median_exposed(ROLLED_BACK)}"
        f"  promoted after {ended.median_after_s(PROMOTED)} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
