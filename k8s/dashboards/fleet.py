"""The fleet: replicas as the gateways see them, TensorFlow Serving's own metrics, GPUs, and the gateways."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from k8s.dashboards.panels import Row, board, lines, query

_M = '{model=~"$model"}'


def dashboard() -> Dashboard:
    """The dashboard."""
    rows = _replicas(), _serving(), _graphics(), _gateways()
    return board("sluice-fleet", "Sluice: fleet", "Replicas, TensorFlow Serving, GPUs, gateways.", *rows)


def _replicas() -> Row:
    return Row(
        "Replicas",
        (
            lines(
                "Replicas up",
                "1 where any gateway gets an answer; and whether calls have failed of late.",
                query("max by (replica) (sluice_replica_up)", "{{replica}} up"),
                query("max by (replica) (sluice_replica_breaker_open)", "{{replica}} left alone"),
            ),
            lines(
                "Replicas that have a version",
                "As the best informed gateway sees it.",
                query(
                    f"max by (model, version) (sluice_model_version_replicas{_M})", "{{model}} {{version}}"
                ),
            ),
            lines(
                "States of versions",
                "1 for the state that is furthest on any replica.",
                query(
                    f"max by (model, version, state) (sluice_model_version_state{_M}) == 1",
                    "{{model}} {{version}} {{state}}",
                ),
            ),
            lines(
                "Load and latency of a replica",
                "Calls in flight from all gateways; moving average of a call's duration.",
                query("sum by (replica) (sluice_replica_calls_in_flight)", "{{replica}} in flight"),
                query("avg by (replica) (sluice_replica_latency_seconds)", "{{replica}} seconds"),
            ),
        ),
    )


def _serving() -> Row:
    return Row(
        "TensorFlow Serving's own metrics",
        (
            lines(
                "Requests",
                "By model and status; they carry no version.",
                query(
                    "sum by (model_name, status) (rate(:tensorflow:serving:request_count[$__rate_interval]))",
                    "{{model_name}} {{status}}",
                ),
                unit="reqps",
            ),
            lines(
                "Latency",
                "99th percentile, of requests that succeeded only.",
                query(
                    "histogram_quantile(0.99, sum by (model_name, le) "
                    "(rate(:tensorflow:serving:request_latency_bucket[$__rate_interval])))",
                    "{{model_name}}",
                ),
                unit="µs",
            ),
        ),
    )


def _graphics() -> Row:
    return Row(
        "GPUs (NVIDIA's DCGM exporter)",
        (
            lines(
                "GPU utilisation",
                "By GPU and pod.",
                query("avg by (gpu, pod) (DCGM_FI_DEV_GPU_UTIL)", "{{pod}} {{gpu}}"),
                unit="percent",
            ),
            lines(
                "GPU memory",
                "Used and free.",
                query("sum by (gpu, pod) (DCGM_FI_DEV_FB_USED)", "{{pod}} {{gpu}} used"),
                query("sum by (gpu, pod) (DCGM_FI_DEV_FB_FREE)", "{{pod}} {{gpu}} free"),
                unit="decmbytes",
            ),
        ),
    )


def _gateways() -> Row:
    by = "instance"
    return Row(
        "Gateways",
        (
            lines(
                "Processor time",
                "Cores that each gateway uses.",
                query(
                    f"sum by ({by}) (rate(process_cpu_seconds_total[$__rate_interval]) "
                    f"and on ({by}) sluice_build_info)",
                    "{{instance}}",
                ),
            ),
            lines(
                "Memory",
                "Resident memory, and bytes of bodies held.",
                query(
                    f"sum by ({by}) (process_resident_memory_bytes and on ({by}) sluice_build_info)",
                    "{{instance}}",
                ),
                query(f"sum by ({by}) (sluice_request_body_bytes)", "{{instance}} bodies"),
                unit="bytes",
            ),
        ),
    )
