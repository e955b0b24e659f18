"""The service: rate, errors and duration, by version; where the time goes; what the models predict."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from k8s.dashboards.panels import Row, board, lines, number, query

_M = '{model=~"$model"}'
_FAILED = 'outcome=~"internal|unavailable|deadline-exceeded|overloaded"'
# What the service could have answered: without callers' own mistakes, and those that left.
_VALID = _FAILED.replace('"internal', '"ok|internal')


def dashboard() -> Dashboard:
    """The dashboard."""
    rows = _at_a_glance(), _requests(), _where_the_time_goes(), _predictions()
    return board("sluice-service", "Sluice: service", "Rate, errors, duration; by version.", *rows)


def _at_a_glance() -> Row:
    return Row(
        "At a glance",
        (
            number(
                "Requests a second",
                "All of them, refused ones included.",
                query("sum(rate(sluice_requests_total[$__rate_interval]))", ""),
                "reqps",
            ),
            number(
                "Failed",
                "Of the requests that the service could have answered those that it did not.",
                query(
                    f"(sum(rate(sluice_requests_total{{{_FAILED}}}[$__rate_interval])) or vector(0)) "
                    f"/ sum(rate(sluice_requests_total{{{_VALID}}}[$__rate_interval]))",
                    "",
                ),
                "percentunit",
            ),
            number(
                "99th percentile",
                "Of the duration of a request.",
                query(
                    "histogram_quantile(0.99, sum by (le) "
                    "(rate(sluice_request_duration_seconds_bucket[$__rate_interval])))",
                    "",
                ),
                "s",
            ),
            number(
                "Room",
                "How full the fullest gateway is.",
                query("max(sluice_requests_in_flight / sluice_requests_in_flight_limit)", ""),
                "percentunit",
            ),
        ),
    )


def _requests() -> Row:
    return Row(
        "Requests",
        (
            lines(
                "Requests by version and arm",
                "Which version answers, and as which arm of a rollout.",
                query(
                    # Series begin at zero; most of them stay there.
                    f"sum by (model, version, arm) (rate(sluice_requests_total{_M}[$__rate_interval])) > 0",
                    "{{model}} {{version}} {{arm}}",
                ),
                unit="reqps",
                stacked=True,
            ),
            lines(
                "Requests by outcome",
                "`ok`, or the kind of error.",
                query(
                    "sum by (protocol, outcome) (rate(sluice_requests_total[$__rate_interval])) > 0",
                    "{{protocol}} {{outcome}}",
                ),
                unit="reqps",
            ),
            lines(
                "Duration by version",
                "50th and 99th percentile.",
                *(
                    query(
                        f"histogram_quantile({quantile}, sum by (model, version, le) "
                        f"(rate(sluice_request_duration_seconds_bucket{_M}[$__rate_interval])))",
                        "{{model}} {{version}} " + name,
                    )
                    for quantile, name in (("0.5", "p50"), ("0.99", "p99"))
                ),
                unit="s",
            ),
            lines(
                "Refusals",
                "By reason: no credentials, over a limit, no room.",
                query(
                    "sum by (reason) (rate(sluice_requests_refused_total[$__rate_interval]))", "{{reason}}"
                ),
                unit="reqps",
            ),
        ),
    )


def _where_the_time_goes() -> Row:
    return Row(
        "Where the time goes",
        (
            lines(
                "Stages",
                "Mean time in each stage of a request's path.",
                query(
                    "sum by (stage) (rate(sluice_stage_duration_seconds_sum[$__rate_interval])) "
                    "/ sum by (stage) (rate(sluice_stage_duration_seconds_count[$__rate_interval]))",
                    "{{stage}}",
                ),
                unit="s",
                stacked=True,
            ),
            lines(
                "Stages, 99th percentile",
                "The slow ones.",
                query(
                    "histogram_quantile(0.99, sum by (stage, le) "
                    "(rate(sluice_stage_duration_seconds_bucket[$__rate_interval])))",
                    "{{stage}}",
                ),
                unit="s",
            ),
            lines(
                "Images in a batch",
                "Mean size of a call to a replica, and why batches leave.",
                query(
                    f"sum by (model) (rate(sluice_batch_size_sum{_M}[$__rate_interval])) "
                    f"/ sum by (model) (rate(sluice_batch_size_count{_M}[$__rate_interval]))",
                    "{{model}} mean size",
                ),
                query(
                    f"sum by (reason) (rate(sluice_batches_total{_M}[$__rate_interval]))",
                    "{{reason}}, a second",
                ),
            ),
            lines(
                "Queue and room",
                "Images that wait; requests in flight, and in progress, with a limit learned for each model.",
                query(f"sum by (model) (sluice_queue_depth{_M})", "{{model}} waiting"),
                query("sum(sluice_requests_in_flight)", "in flight"),
                query("sum(sluice_requests_in_flight_limit)", "in flight, limit"),
                query(f"sum by (model) (sluice_requests_in_progress{_M})", "{{model}} in progress"),
                query(
                    f"sum by (model) (sluice_requests_in_progress_limit{_M})", "{{model}} in progress, limit"
                ),
            ),
        ),
    )


def _predictions() -> Row:
    return Row(
        "Predictions",
        (
            lines(
                "Predicted classes",
                "Images by the class that was put first; a shift shows here first.",
                query(
                    f"sum by (model, class) (rate(sluice_predictions_total{_M}[$__rate_interval]))",
                    "{{model}} {{class}}",
                ),
                stacked=True,
            ),
            lines(
                "Drift",
                "Population stability index against the training data; 0.25 is far.",
                query(f"max by (model, version) (sluice_prediction_drift{_M})", "{{model}} {{version}}"),
            ),
        ),
    )
