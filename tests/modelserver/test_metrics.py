"""The exposition of what is counted."""

from __future__ import annotations

from serving.modelserver.metrics import Counter, Histogram


def test_metrics_are_written_as_prometheus_reads_them() -> None:
    counter = Counter(":a:count", ["model_name"])
    assert counter.lines() == []
    counter.add('odd "name"\\')
    counter.add('odd "name"\\', by=2)
    assert counter.lines() == ["# TYPE :a:count counter", ':a:count{model_name="odd \\"name\\"\\\\"} 3']
    histogram = Histogram(":a:time", ["m"], [10.0, 18.0])
    for value in (5.0, 10.0, 11.0, 99.0):
        histogram.observe(value, "x")
    assert histogram.lines() == [
        "# TYPE :a:time histogram",
        ':a:time_bucket{m="x",le="10"} 2',
        ':a:time_bucket{m="x",le="18"} 3',
        ':a:time_bucket{m="x",le="+Inf"} 4',
        ':a:time_sum{m="x"} 125',
        ':a:time_count{m="x"} 4',
    ]
