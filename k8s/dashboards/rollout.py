"""Rollouts: where they are, the evidence on its way to a decision, and the counts it rests on."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from k8s.dashboards.panels import Row, board, lines, query

_M = '{model=~"$model"}'


def dashboard() -> Dashboard:
    """The dashboard."""
    rows = _where_it_is(), _evidence(), _counts()
    return board("sluice-rollout", "Sluice: rollout", "Evidence for and against a new version.", *rows)


def _where_it_is() -> Row:
    return Row(
        "Where it is",
        (
            lines(
                "Traffic",
                "The share of the requests that each arm answers.",
                query(
                    f"max by (model, arm) (sluice_rollout_traffic_share{_M})",
                    "{{model}} {{arm}}",
                ),
                unit="percentunit",
                stacked=True,
            ),
            lines(
                "Phase",
                "1 for the phase that each model's newest rollout is in.",
                query(
                    f"max by (model, phase, stable, candidate) (sluice_rollout_info{_M})",
                    "{{model}} {{stable}} → {{candidate}}: {{phase}}",
                ),
            ),
        ),
    )


def _evidence() -> Row:
    return Row(
        "Evidence",
        (
            lines(
                "On the way to: it is worse",
                "The logarithm of the e-value over that of its limit: at 1 the candidate is rolled back.",
                query(_way("worse"), "{{model}} {{criterion}}"),
                unit="percentunit",
            ),
            lines(
                "On the way to: it is good enough",
                "The same for the promotion, which takes every required criterion.",
                query(_way("good"), "{{model}} {{criterion}}"),
                unit="percentunit",
            ),
        ),
    )


def _way(verdict: str) -> str:
    of = f'{{model=~"$model",verdict="{verdict}"}}'
    return (
        f"clamp(max by (model, criterion) (sluice_rollout_evidence{of}) "
        f"/ max by (model, criterion) (sluice_rollout_evidence_limit{of}), -0.5, 1.5)"
    )


def _counts() -> Row:
    bad, everything = '{model=~"$model",kind="bad"}', '{model=~"$model",kind="all"}'
    return Row(
        "What was counted",
        (
            lines(
                "Share of bad events",
                "Since the rollout began, by criterion and arm.",
                query(
                    f"max by (model, criterion, arm) (sluice_rollout_observed{bad}) "
                    f"/ (max by (model, criterion, arm) (sluice_rollout_observed{everything}) > 0)",
                    "{{model}} {{criterion}} {{arm}}",
                ),
                unit="percentunit",
            ),
            lines(
                "Requests by arm",
                "Of every gateway.",
                query(
                    f"sum by (model, arm, outcome) (rate(sluice_requests_total{_M}[$__rate_interval]))",
                    "{{model}} {{arm}} {{outcome}}",
                ),
                unit="reqps",
            ),
            lines(
                "Agreement of copies",
                "Images that both versions named alike, by the class that the stable version named.",
                query(
                    f"sum by (model, class) (sluice_shadow_agreed_total{_M}) "
                    f"/ sum by (model, class) (sluice_shadow_compared_total{_M})",
                    "{{model}} {{class}}",
                ),
                unit="percentunit",
            ),
            lines(
                "Calls of each version",
                "Calls to replicas, and those that the version failed.",
                query(
                    f"sum by (model, version) (rate(sluice_version_calls_total{_M}[$__rate_interval]))",
                    "{{model}} {{version}}",
                ),
                query(
                    "sum by (model, version) "
                    f"(rate(sluice_version_calls_failed_total{_M}[$__rate_interval]))",
                    "{{model}} {{version}} failed",
                ),
            ),
            lines(
                "Feedback",
                "Share of the answers about which feedback came that were wrong.",
                query(
                    f"sum by (model, version) (sluice_feedback_wrong_total{_M}) "
                    f"/ sum by (model, version) (sluice_feedback_total{_M})",
                    "{{model}} {{version}}",
                ),
                unit="percentunit",
            ),
        ),
    )
