"""Several workers compute what one would: two processes with TF_CONFIG, and two devices in one."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ports import free_port
from training.distribution import distribution
from training.errors import BadInput

TEN_STEPS = """
import dataclasses, json, sys
import numpy as np
import tensorflow as tf
from training.distribution import distribution
if sys.argv[1] == "mirrored":
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
spread = distribution(sys.argv[1])
from training import recipes
from training.config import Options
from training.loop import Run, fit
plan = recipes.plan("sequential", Options(epochs=1, examples=400, batch_size=32))
problem = dataclasses.replace(
    plan.problem,
    train=plan.problem.train.take(np.arange(320)),
    validation=plan.problem.validation.take(np.arange(30)),
)
run = Run(report=lambda epoch, metrics: print(json.dumps(metrics)), distribution=spread)
model, history = fit(problem, plan.variants["sequential"], plan.hyperparameters, run)
print(json.dumps([spread.replicas, spread.chief, history.epochs[0], float(model.get_weights()[0].sum())]))
"""


def start(strategy: str, task: str | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TEN_STEPS, strategy],
        env=os.environ | ({"TF_CONFIG": task} if task else {}) | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen[str]) -> tuple[int, bool, dict[str, float], float, int]:
    """(replicas, chief, metrics, sum of weights, reports)."""
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err[-3000:]
    *reports, last = out.splitlines()
    replicas, chief, metrics, weights = json.loads(last)
    return replicas, chief, metrics, weights, len(reports)


def test_two_workers_and_two_devices_compute_what_one_does() -> None:
    workers = [f"127.0.0.1:{port}" for port in (free_port(), free_port())]
    tasks = [
        json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})
        for index in (0, 1)
    ]
    both = [start("multiworker", task) for task in tasks]
    others = [result(process) for process in both]
    alone, mirrored = result(start("none")), result(start("mirrored"))
    assert alone[:2] == (1, True)
    assert mirrored[:2] == (2, True)
    assert [(replicas, chief, reports) for replicas, chief, _, _, reports in others] == [
        (2, True, 1),
        (2, False, 0),
    ]
    for _, _, metrics, weights, _ in (*others, mirrored):
        assert metrics == pytest.approx(alone[2], abs=1e-4)
        assert weights == pytest.approx(alone[3], abs=1e-3)


OBEYING = """
import os, sys
from training.distribution import distribution
from training.errors import TrainingError
spread = distribution("multiworker")
from training import recipes
from training.config import Options
from training.loop import Run, fit
plan = recipes.plan("simple-dense", Options())
print("here", flush=True)
for line in sys.stdin:
    command, *numbers = line.split()
    if command == "end":
        os._exit(0)
    try:
        if command == "train":
            run = Run(report=lambda epoch, metrics: None, distribution=spread)
            fit(plan.problem, plan.variants["simple-dense"], plan.hyperparameters, run)
        print(spread.all_at(int(numbers[0])) if command == "at" else "done", flush=True)
    except TrainingError as error:
        print(error, flush=True)
"""
GONE = "another worker ended first; start all of them again, with --resume\n"


class Workers:
    """Two processes of one cluster that obey, the chief first."""

    def __init__(self) -> None:
        addresses = [f"127.0.0.1:{port}" for port in (free_port(), free_port())]
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", OBEYING],
                env=os.environ
                | {
                    "TF_CPP_MIN_LOG_LEVEL": "3",
                    "TF_CONFIG": json.dumps(
                        {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
                    ),
                },
                cwd=Path(__file__).parents[2],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for index in (0, 1)
        ]

    def obey(self, *commands: str) -> list[str]:
        """A line from each, which is empty of one that has ended."""
        for process, command in zip(self.processes, commands, strict=True):
            assert process.stdin is not None
            process.stdin.write(f"{command}\n")
            process.stdin.flush()
        return self.read()

    def read(self) -> list[str]:
        return [process.stdout.readline() for process in self.processes if process.stdout is not None]


@pytest.fixture
def workers() -> Iterator[Workers]:
    started = Workers()
    try:
        assert started.read() == ["here\n", "here\n"]
        yield started
    finally:
        for process in started.processes:
            process.kill()
            process.communicate()


def test_workers_know_whether_all_are_at_one_epoch_and_whether_all_are_there(workers: Workers) -> None:
    """One that found no checkpoint beside others that did would learn another model than they."""
    assert workers.obey("at 3", "at 3") == ["True\n", "True\n"]
    assert workers.obey("at 3", "at 0") == ["False\n", "False\n"]
    assert workers.obey("train", "end") == [GONE, ""]


def test_workers_wait_until_the_chief_has_published(workers: Workers) -> None:
    """One that comes back alone, after it failed in that, would wait for ever for those that are done."""
    assert workers.obey("end", "at 0") == ["", GONE]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "--strategy multiworker needs TF_CONFIG"),
        ("{", "TF_CONFIG cannot be used"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 3}}', "TF_CONFIG cannot be"),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": -1}}',
            "TF_CONFIG cannot be",
        ),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "TF_CONFIG cannot be"),
    ],
)
def test_a_cluster_that_cannot_be(config: str | None, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(BadInput, match=message):
        distribution("multiworker")


def test_an_address_that_another_listens_on() -> None:
    script = """
from training.distribution import distribution
from training.errors import BadInput
try:
    distribution("multiworker")
except BadInput as error:
    print(error)
"""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        workers = [f"127.0.0.1:{other.getsockname()[1]}"]
        task = json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": 0}})
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"TF_CONFIG": task, "TF_CPP_MIN_LOG_LEVEL": "3"},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == f"TF_CONFIG cannot be used (Could not start gRPC server): {task}\n"
