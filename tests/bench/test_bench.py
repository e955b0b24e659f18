"""The benchmark's own arithmetic and tools; what it measures is not measured here."""

from __future__ import annotations

import email
import email.policy
import io
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.bench import load, photos, promises, readme, report
from tests.bench.peers.launcher import PEERS, PeerFailed, serving
from tests.bench.servers import REPOSITORY, end, hold, process, running, until

README = (REPOSITORY / "README.md").read_text()


def jpeg(seed: int, width: int = 320, height: int = 200) -> bytes:
    """Noise over a gradient: an image with something to lose."""
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
    file = io.BytesIO()
    Image.fromarray((noise + np.linspace(0, 190, width)[None, :, None]).astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()


def test_resized_photographs_have_the_size_and_about_the_bytes() -> None:
    found = photos.resized([jpeg(seed) for seed in range(3)], 200, 150)
    assert {Image.open(io.BytesIO(photo)).size for photo in found} == {(200, 150)}
    assert sum(map(len, found)) / 3 == pytest.approx(photos.BYTES_PER_PIXEL * 200 * 150, rel=0.1)


def test_a_form_holds_the_photograph() -> None:
    body, headers = photos.as_form("photo")(b"\xff\xd8 anything \r\n")
    message = email.message_from_bytes(
        f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body, policy=email.policy.HTTP
    )
    (part,) = message.iter_parts()
    assert part.get_param("name", header="content-disposition") == "photo"
    assert part.get_payload(decode=True) == b"\xff\xd8 anything \r\n"


def test_a_request_to_triton_tells_its_own_lengths() -> None:
    body, headers = photos.as_triton(b"a photograph")
    at = int(headers["Inference-Header-Content-Length"])
    (tensor,) = json.loads(body[:at])["inputs"]
    assert tensor["parameters"]["binary_data_size"] == len(body) - at
    assert int.from_bytes(body[at : at + 4], "little") == len(b"a photograph")
    assert body[at + 4 :] == b"a photograph"


PARTS = {
    "decode, all cores (images/s)": 2000.0,
    "decode, one image alone (ms)": 0.9,
    "empty POST, server (core-ms)": 0.1,
    "empty POST, wrk (core-ms)": 0.05,
    "gRPC call with a batch (core-ms an image)": 0.02,
    "model in process, batch 1 (images/s)": 500.0,
    "model in process, batch 32 (images/s)": 2000.0,
    "model in process, one image alone (ms)": 2.0,
}


def loads(**overrides: float) -> dict[str, dict[str, float]]:
    """A load of each kind, 100 a second if not told otherwise."""
    names = [f"{name}, {report.clients(count)}" for name in report.CONTESTANTS for count in (1, 8, 32, 128)]
    names += ["empty POST, 1 client", "empty POST, 32 clients", "Sluice, fast replica, 64 clients"]
    names += [f"{who}, tensors of {rows}" for who in ("Sluice", "direct") for rows in (8, 32)]
    names += [f"{who}, half load, {rows}" for who in ("Sluice", "direct") for rows in (1, 32)]
    about = {"spread": 1.0, "p50_ms": 4.0, "p99_ms": 6.0, "client_ms": 0.1, "failed": 0}
    return {name: {"per_s": overrides.get(name, 100.0), **about} for name in names}


def test_the_ceiling_adds_the_parts() -> None:
    found = promises.ceiling(PARTS, cores=2)
    assert found.per_s == pytest.approx(2 * 1e3 / (1.0 + 0.1 + 1.0 + 0.02))
    assert "decode 1.000 + empty POST 0.100" in str(found)


def test_lines_hold_or_do_not() -> None:
    found = {
        line.what: line
        for line in promises.small_model(
            loads(**{"Sluice, 32 clients": 900.0, "Sluice, tensors of 32": 99.0}), PARTS, cores=2
        )
    }
    assert found["throughput at 32 clients ÷ ceiling of the parts"].found == pytest.approx(900 * 2.12 / 2000)
    assert found["throughput at 32 clients ÷ ceiling of the parts"].holds is True
    assert found["throughput at 32 clients ÷ PyTriton"].found == 9.0
    assert found["throughput at 32 clients ÷ PyTriton"].asked == "≥ 2.3"
    assert found["p50 at 1 client − (decode + POST + model)"].found == pytest.approx(4 - 0.9 - 4 - 2)
    assert found["tensors over gRPC ÷ direct to the model server"].holds is True
    assert found["tensors over gRPC ÷ model in process at its best batch"].holds is False
    assert found["added p99 at half load, one image a call"].asked == "≤ 3 ms"
    assert found["fast replica: throughput a core"].holds is None


def test_each_line_is_the_median_of_the_rounds() -> None:
    rounds = [[promises.Line("a", found, least=2.0)] for found in (1.0, 5.0, 3.0)]
    rounds[1].append(promises.Line("b", 7.0))
    assert promises.medians(rounds) == [promises.Line("a", 3.0, least=2.0), promises.Line("b", 7.0)]


def test_loads_and_parts_are_the_medians_of_the_rounds_that_have_them() -> None:
    rounds = [{"a": load.Load(rate, rate / 10, rate, 1)} for rate in (10.0, 40.0, 20.0)]
    rounds[0]["b"] = load.Load(1.0, 1.0, 1.0, 0)
    found = report.medians(rounds)
    assert found["a"]["per_s"] == 20.0
    assert found["a"]["spread"] == 4.0
    assert (found["a"]["failed"], found["b"]["per_s"]) == (3, 1.0)
    assert report.parts([{"c": [1.0, 2.0]}, {"c": [9.0]}]) == {"c": 2.0}


def test_a_peer_that_was_not_measured_has_no_line() -> None:
    found = loads()
    del found["PyTriton, 32 clients"]
    assert not any("PyTriton" in line.what for line in promises.small_model(found, PARTS, cores=2))


def test_rates_are_taken_from_each_clients_first_answer_to_its_last() -> None:
    calls = load.Calls([[10.0, 10.5, 11.0], [10.2, 12.2]], [0.5, 0.5, 0.5, 1.0, 2.0], failed=1)
    found = calls.load(rows=4, client_s=1.0)
    assert found.per_s == pytest.approx(4 * (2 / 1.0 + 1 / 2.0))
    assert (found.p50_ms, found.failed, found.answers) == (500.0, 1, 20)
    assert found.client_ms == pytest.approx(50.0)
    with pytest.raises(load.NoAnswer, match="1 calls failed"):
        load.Calls([[]], [], failed=1).load(rows=1, client_s=0.0)


def test_turns_are_put_together() -> None:
    turns = [load.Calls([[1.0, 2.0]], [0.1, 0.2], 0), load.Calls([[7.0, 7.5]], [0.3, 0.4], 2)]
    found = load.together(turns, rows=2, client_s=0.0)
    assert found.per_s == pytest.approx((2 + 4) / 2)
    assert found.p50_ms == pytest.approx(250.0)
    assert (found.failed, found.answers) == (2, 8)


async def test_failed_calls_are_counted_in_closed_loops_and_steady_ones() -> None:
    counts = {"closed": 0, "steady": 0}

    def fails_first(name: str) -> load.Call:
        async def call(_client: int) -> bool:
            counts[name] += 1
            return counts[name] > 1

        return call

    closed = await load.closed_loop(fails_first("closed"), clients=2, seconds=0.05)
    steady = await load.steady(fails_first("steady"), seconds=0.5, calls_per_s=20)
    assert closed.failed == 1
    assert sum(map(len, closed.ended_s)) == counts["closed"] - 1
    assert (steady.failed, len(steady.took_s), counts["steady"]) == (1, 9, 10)


@pytest.mark.parametrize("slowly", [False, True])
def test_photographs_are_posted(tmp_path: Path, slowly: bool) -> None:
    if not slowly and shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
    requests = photos.write([jpeg(0), jpeg(1)], tmp_path)
    post = load.post_photos_slowly if slowly else load.post_photos
    with process("-m", "tests.bench.ceilings", "empty-post") as (port, _):
        found = post(f"http://127.0.0.1:{port}/", requests, clients=2, seconds=1)
    assert found.failed == 0
    assert found.answers >= 4
    assert 0 < found.p50_ms <= found.p99_ms


def test_a_server_from_which_nothing_comes_is_told(tmp_path: Path) -> None:
    requests = photos.write([jpeg(0)], tmp_path)
    with socket.socket() as nobody:  # bound, and not listening
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/"
        with pytest.raises(load.NoAnswer, match="calls failed, none succeeded"):
            load.post_photos_slowly(url, requests, clients=1, seconds=0.1)


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; one that nobody has waited for yet does not."""
    try:
        return process.is_running() and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_held_process_stands_still_with_its_children_until_it_ends() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    parent = subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"1\n"
    family = [psutil.Process(parent.pid), *psutil.Process(parent.pid).children(recursive=True)]
    assert len(family) == 2
    hold(parent.pid)
    until(lambda: all(each.status() == psutil.STATUS_STOPPED for each in family), timeout_s=10)
    with running(parent.pid):
        until(lambda: all(each.status() != psutil.STATUS_STOPPED for each in family), timeout_s=10)
    end(parent.pid, patience_s=0.2)
    parent.wait(timeout=10)
    until(lambda: not any(is_alive(each) for each in family), timeout_s=10)


@pytest.mark.parametrize("stem", PEERS)
def test_peers_are_pinned(stem: str) -> None:
    folder = REPOSITORY / "tests" / "bench" / "peers"
    lines = (folder / f"{stem}.txt").read_text().splitlines()
    assert lines[0].startswith("# ")
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9._-]+==[0-9][0-9a-z.]*", line) for line in pins)
    assert any(line.startswith((f"{stem}==", f"nvidia-{stem}==")) for line in pins)
    assert (folder / f"{stem}_server.py").exists()


def test_a_peer_that_does_not_start_says_why(tmp_path: Path) -> None:
    peer = PEERS["kserve"]
    (tmp_path / peer.stem / "bin").mkdir(parents=True)
    (tmp_path / peer.stem / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    pins = REPOSITORY / "tests" / "bench" / "peers" / f"{peer.stem}.txt"
    shutil.copy(pins, tmp_path / peer.stem / "installed.txt")
    python = tmp_path / peer.stem / "bin" / "python"
    python.write_text("#!/bin/sh\necho no such module >&2\nexit 3\n")
    python.chmod(0o755)
    requests = photos.write([b"a photograph"], tmp_path / "bodies")
    with (
        pytest.raises(PeerFailed, match="ended with code 3: no such module"),
        serving(peer, tmp_path, 32, requests, tmp_path),
    ):
        pass


def summaries() -> dict[str, dict[str, Any]]:
    """Of a run that measured everything."""
    each = {"photos": "photographs of 104 kB", "loads": loads(), "failed_peers": {}, "clients": [1, 8, 32]}
    small = promises.small_model(loads(), PARTS, cores=2)
    large = promises.large_model(loads(), PARTS, rows=8)
    return {
        "resnet20": {**each, "lines": promises.as_table(small)},
        "resnet50": {**each, "lines": promises.as_table(large)},
    }


def shapes(table: str) -> dict[str, str]:
    """Each row by its first cell, with figures and verdicts struck out of the rest and of headings."""
    rows = {}
    for line in table.splitlines():
        if line.startswith("|"):
            first, _, rest = line[1:].partition("|")
            label = re.sub(r"photographs of \d+ kB", "photographs", first).replace("500×375 ", "")
            rows[label.strip()] = re.sub(r"-?\d+(\.\d+)?", "#", rest.replace(", missed", ""))
    return rows


def test_the_readmes_tables_are_laid_out_by_the_benchmark() -> None:
    inside = README.partition(readme.BEGIN)[2].partition(readme.END)[0]
    found, made = shapes(inside), shapes(readme.table(summaries()))
    assert {"Sluice", "in the same run"} <= set(found)
    assert [label for label in found if label not in made] == []
    assert {label for label in made if label.startswith("ResNet-20")} <= set(found)
    for label, shape in found.items():
        assert "not measured" in shape or shape == made[label], label


def test_tables_go_between_the_markers(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    found = summaries()
    found["resnet20"]["failed_peers"] = {"KServe": "ended with code 3"}
    found["resnet20"]["loads"]["BentoML, 8 clients"]["failed"] = 7
    readme.write(found, path)
    assert path.read_text() == f"before\n{readme.BEGIN}\n{readme.table(found)}\n{readme.END}\nafter\n"
    assert "| KServe | not measured: ended with code 3 |" in path.read_text()
    assert "| Sluice | 100 (4.0 / 6.0) | 100 (4.0 / 6.0) | 100 (4.0 / 6.0) |" in path.read_text()
    assert "| BentoML | 100 (4.0 / 6.0) | 100 (4.0 / 6.0), 7 failed | 100 (4.0 / 6.0) |" in path.read_text()
    path.write_text("no markers")
    with pytest.raises(ValueError, match="lacks the lines"):
        readme.write(found, path)


def test_a_run_keeps_what_an_earlier_one_found_for_other_models(tmp_path: Path) -> None:
    earlier: Mapping[str, Any] = {"resnet50": {"lines": []}, "resnet20": {"lines": [1]}}
    (tmp_path / "bench.json").write_text(json.dumps(earlier))
    assert report.merge({"resnet20": {"lines": [2]}}, tmp_path) == {
        "resnet20": {"lines": [2]},
        "resnet50": {"lines": []},
    }


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--size", "large"], 2, "large is not WIDTHxHEIGHT in pixels, such as 500x375"),
        (["--peers", "torchserve"], 2, "invalid choice"),
        (["--readme", "/nowhere/bench.json"], 1, "error: "),
    ],
)
def test_wrong_arguments_are_told(arguments: list[str], code: int, says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
