"""How models come and go: folders, policies, reloads by file and by RPC, labels, warm-up, retries."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving import protos
from tests.modelserver.conftest import StartServer, config_of
from tests.modelserver.process import ENDED, IS_OURS, ServerProcess, until
from tests.modelserver.test_conformance_predict import Code, request

X = np.array([2.0], np.float32)
FAST = ("--file_system_poll_wait_seconds=1", "--max_num_load_retries=0", "--load_retry_interval_micros=1000")


def specific(*versions: int) -> dict[str, Any]:
    return {"specific": {"versions": versions}}


def copy(source: Path, target: Path) -> None:
    """Publish as one should: write beside, then rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    hidden = target.parent / f".{target.name}.part"
    shutil.copytree(source, hidden)
    hidden.rename(target)


def version_that_answers(server: ServerProcess, model: str = "m", label: str = "") -> int:
    message = request(model, x=X)
    if label:
        message.model_spec.version_label = label
    return int(server.predict(message).model_spec.version.value)


@contextmanager
def load_of_clients(server: ServerProcess, clients: int, make: Callable[[], Any]) -> Iterator[Counter[Any]]:
    """Clients that call without pause; what they got, by version or by error, is counted."""
    seen: Counter[Any] = Counter()
    lock, done = threading.Lock(), threading.Event()

    def work() -> None:
        while not done.is_set():
            try:
                key: Any = server.predict(make()).model_spec.version.value
            except grpc.RpcError as error:
                key = f"{error.code()}: {error.details()}"
            with lock:
                seen[key] += 1

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_new_versions_are_found_and_old_ones_leave_while_clients_call(
    start: StartServer, zoo: Path, tmp_path: Path
) -> None:
    base = tmp_path / "m"
    copy(zoo / "half_plus_two" / "1", base / "1")
    (base / "abc").mkdir()
    server = start("--model_name=m", f"--model_base_path={base}", "--grpc_max_threads=64", *FAST).wait_ready()
    assert version_that_answers(server) == 1
    with load_of_clients(server, 4, lambda: request("m", x=X)) as seen:
        copy(zoo / "half_plus_two" / "2", base / "2")
        server.wait_states("m", {2: "AVAILABLE", 1: "END"})
        until(lambda: seen[2] > 20, "version 2 answers")
        from tests.modelserver import models

        models.corrupt(base / "3")
        server.wait_states("m", {3: "END"})
        (base / "4").mkdir()  # a version without a SavedModel
        server.wait_states("m", {4: "END", 2: "AVAILABLE"})
    assert set(seen) == {1, 2}, seen
    message = protos.GetModelStatusRequest(model_spec={"name": "m"})
    response = server.call(protos.MODEL_SERVICE, "GetModelStatus", message)
    errors = {entry.version: entry.status.error_message for entry in response.model_version_status}
    codes = {entry.version: entry.status.error_code for entry in response.model_version_status}
    assert (codes[3] != 0, codes[4] != 0, codes[2]) == (True, True, 0)
    assert "saved_model.pb" in errors[3]
    assert "Could not find SavedModel" in errors[4]
    assert errors[2] == ""
    shutil.rmtree(base / "3")
    shutil.rmtree(base / "4")
    assert version_that_answers(server) == 2
    shutil.rmtree(base / "2")
    server.wait_states("m", {1: "AVAILABLE"})
    assert server.stop() in ENDED


def test_a_base_path_that_appears_late_is_served_then(start: StartServer, zoo: Path, tmp_path: Path) -> None:
    base = tmp_path / "late"
    server = start("--model_name=m", f"--model_base_path={base}", *FAST)
    until(lambda: "Could not find base path" in server.log_text(), "it says what it waits for")
    assert server.process.poll() is None
    copy(zoo / "half_plus_two" / "1", base / "7")
    assert version_that_answers(server.wait_ready()) == 7


def test_one_base_path_that_is_not_there_holds_up_every_model(
    start: StartServer, zoo: Path, tmp_path: Path
) -> None:
    base, config = str(zoo / "half_plus_two"), tmp_path / "models.config"

    def m(*versions: int) -> dict[str, Any]:
        return {"name": "m", "base_path": base, "model_version_policy": specific(*versions)}

    config.write_text(str(config_of(m(1))))
    server = start(f"--model_config_file={config}", *FAST).wait_ready()
    late = {"name": "late", "base_path": str(tmp_path / "late")}
    with ThreadPoolExecutor(1) as pool:
        reload = pool.submit(server.reload, config_of(m(1, 2), late))
        until(lambda: server.log_text().count("Could not find base path") > 1, "it has looked, and again")
        assert set(server.states("m")) == {1}
        copy(zoo / "half_plus_two" / "1", tmp_path / "late" / "1")
        reload.result(timeout=60)
    server.wait_states("m", {1: "AVAILABLE", 2: "AVAILABLE"})
    assert version_that_answers(server, "late") == 1


def test_without_a_period_folders_are_looked_at_when_it_starts_only(
    start: StartServer, zoo: Path, tmp_path: Path
) -> None:
    base = str(zoo / "half_plus_two")
    server = start(
        "--model_name=m", f"--model_base_path={base}", "--file_system_poll_wait_seconds=0"
    ).wait_ready()
    everything = {"name": "m", "base_path": base, "model_version_policy": {"all": {}}}
    server.reload(config_of(everything))
    assert server.states("m") == {3: "AVAILABLE"}
    with pytest.raises(grpc.RpcError) as caught:
        server.reload(config_of(everything, {"name": "n", "base_path": base}), timeout_s=1.5)
    assert caught.value.code() is Code.DEADLINE_EXCEEDED
    assert server.states("n") == {}


def test_a_failed_load_is_tried_again(start: StartServer, zoo: Path, tmp_path: Path) -> None:
    base = tmp_path / "m"
    (base / "1").mkdir(parents=True)
    server = start(
        "--model_name=m", f"--model_base_path={base}",
        "--max_num_load_retries=1000000", "--load_retry_interval_micros=100000",
    )  # fmt: skip
    until(lambda: "Could not find SavedModel" in server.log_text(), "the first try failed")
    shutil.copytree(zoo / "half_plus_two" / "1", base / "1", dirs_exist_ok=True)
    assert version_that_answers(server.wait_ready()) == 1


def test_reload_by_rpc_with_labels_under_load(start: StartServer, zoo: Path, tmp_path: Path) -> None:
    """The safe swap: {1, 2} → wait for 2 → move the label → drain → {2}; and every rule on the way."""
    base = str(zoo / "half_plus_two")
    config = tmp_path / "models.config"

    def m(*versions: int, **labels: int) -> Any:
        entry = {"base_path": base, "model_version_policy": specific(*versions), "version_labels": labels}
        return config_of({"name": "m", **entry})

    config.write_text(str(m(1)))
    server = start(f"--model_config_file={config}", "--grpc_max_threads=64", *FAST).wait_ready()
    server.reload(m(1, stable=1))
    labelled = request("m", x=X)
    labelled.model_spec.version_label = "stable"
    with load_of_clients(server, 16, lambda: labelled) as seen:
        with pytest.raises(grpc.RpcError) as caught:
            server.reload(m(1, 2, stable=2))  # not available yet: refused before anything loads
        assert caught.value.code() is Code.FAILED_PRECONDITION
        assert "Request to assign label to version 2 of model m, which is not currently available" in (
            caught.value.details() or ""
        )
        assert 2 not in server.states("m")
        assert server.reload(m(1, 2, stable=1)).HasField("status")
        server.wait_states("m", {1: "AVAILABLE", 2: "AVAILABLE"})
        assert version_that_answers(server, label="stable") == 1
        server.reload(m(1, 2, stable=2))
        assert version_that_answers(server, label="stable") == 2
        until(lambda: seen[2] > 50, "the label has moved")
        server.reload(m(2, stable=2))
        server.wait_states("m", {1: "END", 2: "AVAILABLE"})
    assert set(seen) == {1, 2}, seen
    # A config replaces all: a model that is left out is unloaded, a new one is waited for.
    server.reload(config_of({"name": "n", "base_path": base}))
    assert version_that_answers(server, "n") == 3
    server.wait_states("m", {2: "END"})
    with pytest.raises(grpc.RpcError) as caught:
        server.predict(labelled)
    assert caught.value.code() in (Code.INVALID_ARGUMENT, Code.NOT_FOUND)


def reload_refusal(server: ServerProcess, config: Any) -> tuple[Code, str]:
    with pytest.raises(grpc.RpcError) as caught:
        server.reload(config)
    return caught.value.code(), caught.value.details() or ""


def test_reloads_that_are_refused(start: StartServer, zoo: Path, tmp_path: Path) -> None:
    base = str(zoo / "half_plus_two")
    server = start("--model_name=m", f"--model_base_path={base}", *FAST).wait_ready()
    twice = config_of({"name": "m", "base_path": base}, {"name": "m", "base_path": base})
    assert reload_refusal(server, twice) == (
        Code.INVALID_ARGUMENT, "Illegal to list model m multiple times in config list"
    )  # fmt: skip
    code, text = reload_refusal(server, config_of({"name": "m", "base_path": "relative/path"}))
    assert code is Code.INVALID_ARGUMENT
    assert "Expected model m to have an absolute path or URI; got base_path()=relative/path" in text
    other = protos.ModelServerConfig()
    other.model_config_list.config.add(name="m", base_path=base, model_platform="caffe")
    code, text = reload_refusal(server, other)
    assert code is Code.INVALID_ARGUMENT
    assert "Illegal to change a model's platform. For model m platform was tensorflow" in text
    code, text = reload_refusal(server, protos.ModelServerConfig())
    assert code is Code.INVALID_ARGUMENT
    assert "not supported by HandleReloadConfigRequest" in text
    from tests.modelserver import models

    models.corrupt(tmp_path / "bad" / "1")
    bad = config_of({"name": "m", "base_path": base}, {"name": "bad", "base_path": str(tmp_path / "bad")})
    code, text = reload_refusal(server, bad)
    assert code is Code.UNKNOWN
    assert "1 model(s) did not become available: {" in text
    assert "name: bad version: 1" in text
    assert "due to error: " in text
    assert "saved_model.pb" in text
    until(lambda: "ReloadConfig failed" in server.log_text(), "the log says so, too")
    assert version_that_answers(server) == 3


def test_the_config_file_is_read_again_by_period(start: StartServer, zoo: Path, tmp_path: Path) -> None:
    config = tmp_path / "models.config"

    def write(text: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(text)
        fresh.rename(config)

    def text(name: str, policy: str = "", labels: str = "") -> str:
        return (
            f'model_config_list {{ config {{ name: "{name}" base_path: "{zoo}/half_plus_two" '
            f'model_platform: "tensorflow" {policy} {labels} }} }}'
        )

    write(text("m", "model_version_policy { specific { versions: 1 } }"))
    server = start(
        f"--model_config_file={config}", "--model_config_file_poll_wait_seconds=1", "--grpc_max_threads=64",
        "--allow_version_labels_for_unavailable_models=true", *FAST,
    ).wait_ready()  # fmt: skip
    with load_of_clients(server, 16, lambda: request("m", x=X)) as seen:
        write("this { does not parse")
        write(text("m", "model_version_policy { all {} }", 'version_labels { key: "new" value: 3 }'))
        server.wait_states("m", {1: "AVAILABLE", 2: "AVAILABLE", 3: "AVAILABLE"})
        assert version_that_answers(server, label="new") == 3
        write(text("m", "model_version_policy { latest { num_versions: 2 } }"))
        server.wait_states("m", {1: "END", 2: "AVAILABLE", 3: "AVAILABLE"})
    # Unversioned requests go to the highest available one: 1, then whichever had loaded.
    assert set(seen) <= {1, 2, 3}, seen
    assert seen[1]
    assert seen[3]
    write(text("n"))
    server.wait_states("n", {3: "AVAILABLE"})
    server.wait_states("m", {2: "END", 3: "END"})


@pytest.mark.skipif(not IS_OURS, reason="the original waits for a new model for ever, and reads no more")
def test_a_config_file_with_a_folder_that_is_not_there_can_be_corrected(
    start: StartServer, zoo: Path, tmp_path: Path
) -> None:
    config, base = tmp_path / "models.config", str(zoo / "half_plus_two")

    def write(*models: dict[str, Any]) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(str(config_of(*models)))
        fresh.rename(config)

    write({"name": "m", "base_path": base})
    server = start(
        f"--model_config_file={config}", "--model_config_file_poll_wait_seconds=1", *FAST
    ).wait_ready()
    write({"name": "m", "base_path": base}, {"name": "n", "base_path": f"{base}_misspelt"})
    until(lambda: "half_plus_two_misspelt" in server.log_text(), "it looks there")
    write({"name": "m", "base_path": base}, {"name": "n", "base_path": base})
    server.wait_states("n", {3: "AVAILABLE"})
    server.reload(config_of({"name": "m", "base_path": base}))


def test_warm_up_runs_before_available_and_a_bad_one_fails_the_load(
    start: StartServer, zoo: Path, tmp_path: Path
) -> None:
    from tests.modelserver import models

    base = tmp_path / "m"
    half = zoo / "half_plus_two" / "1"
    shutil.copytree(half, base / "1")
    models.warmup(base / "1", [request("another_name", x=X)] * 5)
    server = start("--model_name=m", f"--model_base_path={base}", *FAST).wait_ready()
    assert version_that_answers(server) == 1
    copy(half, tmp_path / "next")
    streamed = protos.PredictionLog(predict_streamed_log={"request": [request("m", z=X)]})
    models.warmup_records(tmp_path / "next", [b"", streamed.SerializeToString()])  # nothing to replay
    (tmp_path / "next").rename(base / "2")
    server.wait_states("m", {2: "AVAILABLE", 1: "END"})
    bad: dict[int, Callable[[Path], Any]] = {
        3: lambda folder: models.warmup(folder, [request("m", z=X)]),
        4: lambda folder: models.warmup(folder, [request("m", x=X)] * 1001),
        5: lambda folder: (folder / "assets.extra" / "tf_serving_warmup_requests").write_bytes(
            b"no TFRecord" * 9
        ),
        6: lambda folder: models.warmup_records(
            folder, [protos.PredictionLog(session_run_log={}).SerializeToString()]
        ),
    }
    for version, spoil in bad.items():
        shutil.copytree(half, tmp_path / "next")
        (tmp_path / "next" / "assets.extra").mkdir()
        spoil(tmp_path / "next")
        (tmp_path / "next").rename(base / str(version))
        server.wait_states("m", {version: "END", 2: "AVAILABLE"})
    response = server.call(
        protos.MODEL_SERVICE, "GetModelStatus", protos.GetModelStatusRequest(model_spec={"name": "m"})
    )
    status = {entry.version: entry.status for entry in response.model_version_status}
    assert "not found in request and no default value provided" in status[3].error_message
    assert "Number of warmup records exceeds the maximum (1000)" in status[4].error_message
    assert "Please verify your warmup data is in TFRecord format." in status[5].error_message
    assert "Unsupported log_type for warmup: " in status[6].error_message


def test_warm_up_requests_go_through_batching(start: StartServer, zoo: Path, tmp_path: Path) -> None:
    from tests.modelserver import models

    base, parameters = tmp_path / "m", tmp_path / "batching.config"
    parameters.write_text("max_batch_size { value: 8 } batch_timeout_micros { value: 0 }")
    for version, rows in ((1, 8), (2, 9)):
        shutil.copytree(zoo / "half_plus_two" / "1", tmp_path / str(version))
        models.warmup(tmp_path / str(version), [request("m", x=np.zeros(rows, np.float32))])
    copy(tmp_path / "1", base / "1")
    server = start(
        "--model_name=m", f"--model_base_path={base}", "--enable_batching",
        f"--batching_parameters_file={parameters}", *FAST,
    ).wait_ready()  # fmt: skip
    assert version_that_answers(server) == 1
    copy(tmp_path / "2", base / "2")
    server.wait_states("m", {2: "END", 1: "AVAILABLE"})
    message = protos.GetModelStatusRequest(model_spec={"name": "m", "version": {"value": 2}})
    (found,) = server.call(protos.MODEL_SERVICE, "GetModelStatus", message).model_version_status
    assert "Task size 9 is larger than maximum input batch size 8" in found.status.error_message


def test_a_slow_load_leaves_other_models_alone(start: StartServer, zoo: Path, tmp_path: Path) -> None:
    from tests.modelserver import models

    models.slow_to_load(tmp_path / "slow" / "1", steps=2000)
    base = str(zoo / "half_plus_two")
    server = start("--model_name=m", f"--model_base_path={base}", *FAST).wait_ready()
    both = config_of({"name": "m", "base_path": base}, {"name": "slow", "base_path": str(tmp_path / "slow")})
    reloading = threading.Thread(target=lambda: server.reload(both))
    reloading.start()
    until(lambda: server.states("slow").get(1) == "LOADING", "the slow one loads")
    during = 0
    while reloading.is_alive():
        started = time.monotonic()
        assert version_that_answers(server) == 3
        during += 1
        assert time.monotonic() - started < 5.0
    reloading.join()
    assert during > 10
    assert server.states("slow") == {1: "AVAILABLE"}
