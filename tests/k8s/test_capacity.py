"""The capacity plan: its arithmetic, and its bound on latency against a simulated replica."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from bisect import bisect_right

import pytest

from serving.commands import capacity
from serving.commands.capacity import Measured, Need
from serving.commands.plan_capacity import parse_latencies
from serving.errors import InvalidInput

GPU = Measured({1: 0.0021, 8: 0.003, 32: 0.0062, 128: 0.018})


def simulated_p99_s(
    measured: Measured, rate: float, max_batch: int, calls: int, images: int = 20_000
) -> float:
    """The 99th percentile of a replica with Poisson arrivals, batch by batch.

    At most `calls` batches are with the replica, which computes one at a time. Whatever has gathered leaves
    when there is a place: at once if the replica is idle, else once it is as much as is there on average.
    """
    rng = random.Random(7)
    now = 0.0
    arrivals = [now := now + rng.expovariate(rate) for _ in range(images)]
    latencies: list[float] = []
    there: list[tuple[float, int]] = []  # when each batch ends, and its size
    last_end = 0.0
    at = 0
    while at < images:
        now = arrivals[at]
        while there := [each for each in there if each[0] > now]:
            enough = -(-sum(size for _, size in there) // len(there))
            enough_at = arrivals[at + enough - 1] if at + enough <= images else float("inf")
            first_end = min(end for end, _ in there)
            if len(there) < calls and enough_at <= first_end:
                now = max(now, enough_at)
                break
            now = first_end
        size = bisect_right(arrivals, now, at, min(at + max_batch, images)) - at
        last_end = max(now, last_end) + measured.latency_s(size)
        there.append((last_end, size))
        latencies += [last_end - arrival for arrival in arrivals[at : at + size]]
        at += size
    latencies.sort()
    return latencies[int(0.99 * len(latencies))]


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("max_batch", [1, 8, 32, 128])
@pytest.mark.parametrize("utilisation", [0.3, 0.7, 0.9])
def test_the_bound_on_latency_holds_and_is_no_empty_promise(
    calls: int, max_batch: int, utilisation: float
) -> None:
    rate = utilisation * max_batch / GPU.latency_s(max_batch)
    need = Need(images_per_s=rate, calls_per_replica=calls, overhead_s=0.0)
    bound = capacity.p99_s(GPU, need, rate, max_batch)
    found = simulated_p99_s(GPU, rate, max_batch, calls)
    assert found <= bound
    assert bound <= 3.5 * found


def test_latencies_lie_on_lines_between_what_was_measured() -> None:
    assert GPU.latency_s(1) == 0.0021
    assert GPU.latency_s(0.5) == 0.0021
    assert GPU.latency_s(20) == pytest.approx(0.0046)
    assert GPU.latency_s(256) == pytest.approx(0.036)


def test_batches_are_as_large_as_what_arrives_while_one_is_computed() -> None:
    batch = capacity.gathered(GPU, 3000.0, 128)
    assert batch == pytest.approx(3000.0 * GPU.latency_s(batch))
    assert capacity.gathered(GPU, 10.0, 128) == pytest.approx(1.0)
    assert capacity.gathered(GPU, 1e6, 128) == 128


def test_a_hundred_thousand_images_a_second() -> None:
    need = Need(images_per_s=100_000, replica_cost=1.2, gateway_cost=0.1, gateway_images_per_s=2000)
    found = {option.max_batch: option for option in capacity.options(GPU, need)}
    # By hand: 128 / 18 ms = 7,111 a replica; 100,000 / (7,111 x 0.7) = 20.09, so 21, and one to spare.
    assert found[128].replicas == 22
    assert found[1].replicas == 301  # 100,000 / (476.19 x 0.7) = 300, and one
    assert capacity.gateways(need) == 73
    assert found[128].cost_per_million == pytest.approx((22 * 1.2 + 73 * 0.1) / 360)
    assert capacity.best(list(found.values()), need) == found[128]
    shown = capacity.arithmetic(GPU, need, found[128])
    assert f"b = {found[128].batch:.1f}; " in shown["batches"]
    assert shown["full batches"] == "128 images / 18.00 ms = 7,111 images/s a replica"
    assert shown["replicas"] == "100,000 / (7,111 x 0.7) = 20.09 -> 21; with 1 spare 22"
    assert shown["network"] == "100,000 x 55 kB = 44.00 Gbit/s in, 0.60 a gateway"


def test_more_replicas_buy_a_lower_latency_until_they_cannot() -> None:
    relaxed = Need(images_per_s=20_000)
    strict = Need(images_per_s=20_000, p99_s=0.015)
    impossible = Need(images_per_s=20_000, p99_s=0.005)
    by_load = capacity.options(GPU, relaxed)[-1]
    for_latency = capacity.options(GPU, strict)[-1]
    assert for_latency.replicas > by_load.replicas
    assert for_latency.p99_s <= 0.015
    fewer = (for_latency.replicas - 1) - strict.spare
    assert capacity.p99_s(GPU, strict, 20_000 / fewer, 128) > 0.015
    assert f"; for the latency {fewer + 1}; " in capacity.arithmetic(GPU, strict, for_latency)["replicas"]
    assert "for the latency" not in capacity.arithmetic(GPU, relaxed, by_load)["replicas"]
    assert capacity.best(capacity.options(GPU, impossible), impossible) is None
    assert capacity.options(GPU, impossible)[-1].replicas == by_load.replicas
    assert capacity.p99_s(GPU, relaxed, by_load.full_rate, 128) == math.inf


def test_costs_are_reckoned_where_they_are_given() -> None:
    free, paid = Need(images_per_s=100), Need(images_per_s=100, gateway_cost=0.1)
    for need, shown in ((free, False), (paid, True)):
        best = capacity.best(capacity.options(GPU, need), need)
        assert best is not None
        assert ("cost" in capacity.arithmetic(GPU, need, best)) == shown
        assert (best.cost_per_million > 0) == shown


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"images_per_s": 0}, "images_per_s is 0; it must be a number above 0"),
        ({"images_per_s": math.nan}, "images_per_s is nan; it must be a number above 0"),
        ({"images_per_s": math.inf}, "images_per_s is inf; it must be a number above 0"),
        ({"images_per_s": 1, "p99_s": 0.0}, "p99_s is 0; it must be above 0"),
        ({"images_per_s": 1, "utilisation": 1.0}, "utilisation is 1; it lies between 0 and 1"),
        ({"images_per_s": 1, "utilisation": 0.0}, "utilisation is 0; it lies between 0 and 1"),
        ({"images_per_s": 1, "calls_per_replica": 0}, "calls_per_replica is 0"),
        ({"images_per_s": 1, "image_bytes": math.nan}, "image_bytes is nan; it must be a number above 0"),
        ({"images_per_s": 1, "overhead_s": math.inf}, "overhead_s is inf; it must be a number, 0 or above"),
    ],
)
def test_senseless_needs_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Need(**values)  # type: ignore[arg-type]


def test_the_smallest_load_takes_a_replica_and_a_gateway() -> None:
    need = Need(images_per_s=1e-9, spare=0, spare_gateways=0)
    assert [option.replicas for option in capacity.options(GPU, need)] == [1] * len(GPU.seconds)
    assert capacity.gateways(need) == 1


def test_latencies_are_read_with_their_units() -> None:
    assert parse_latencies(["1:2.1ms,8:3ms", "32:6200us", "128:0.018s"]) == pytest.approx(dict(GPU.seconds))
    with pytest.raises(InvalidInput, match='"8=3ms" is not BATCH:LATENCY'):
        parse_latencies(["8=3ms"])
    with pytest.raises(InvalidInput, match="the latency of a batch of 8 is given twice"):
        parse_latencies(["8:3ms", "1:2ms,08:4ms"])
    for senseless in ("0:3ms", "1:0ms"):
        with pytest.raises(InvalidInput, match="makes no sense"):
            Measured(parse_latencies([senseless]))
    with pytest.raises(InvalidInput, match="no batch latency is given"):
        Measured(parse_latencies([","]))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "import typer; from serving.commands.plan_capacity import plan_capacity as p; typer.run(p)"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )


def test_the_command_prints_a_plan_or_says_what_is_wrong() -> None:
    done = run("--rate", "5000", "--latency", "1:2.1ms,32:6.2ms", "--p99-ms", "40", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["best"]["max_batch"] == 32
    refused = run("--rate", "5000")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: pass either --latency BATCH:LATENCY")
    refused = run("--rate", "5000", "--latency", "1:2.1ms", "--image-kb", "nan")
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: image_bytes is nan; it must be a number above 0\n",
    )
