"""The process: how it starts and refuses to, its sockets, TLS, batching, limits and end."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving import protos, tensors
from tests.modelserver.conftest import StartServer, config_of
from tests.modelserver.process import DEADLINE_S, ENDED, IS_OURS, ServerProcess, program, until
from tests.modelserver.test_conformance_predict import Code, predict_refusal, request

ONE = np.ones(1, np.float32)


@pytest.fixture(scope="module")
def batching(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server that batches: up to 8 rows, padded to 4 or 8, a second's wait for a full batch."""
    folder = tmp_path_factory.mktemp("batching")
    parameters = folder / "batching.config"
    parameters.write_text(
        "max_batch_size { value: 8 } batch_timeout_micros { value: 1000000 } num_batch_threads { value: 1 } "
        "max_enqueued_batches { value: 2 } allowed_batch_sizes: 4 allowed_batch_sizes: 8 "
        "pad_variable_length_inputs: true"
    )
    server = ServerProcess(
        ["--model_name=kinds", f"--model_base_path={zoo / 'kinds'}", "--enable_batching=true",
         f"--batching_parameters_file={parameters}", "--grpc_max_threads=32",
         "--enable_signature_method_name_check=false"],
        folder / "log",
    )  # fmt: skip
    yield server.wait_ready()
    assert server.stop() in ENDED, server.log_text()[-3000:]


def together(server: ServerProcess, messages: list[Any]) -> list[Any]:
    """The answers, or errors, to calls made at the same time."""

    def call(message: Any) -> Any:
        try:
            return server.predict(message)
        except grpc.RpcError as error:
            return error

    with ThreadPoolExecutor(len(messages)) as pool:
        return list(pool.map(call, messages))


def test_batches_are_joined_and_padded_to_allowed_sizes(batching: ServerProcess) -> None:
    alone = batching.predict(request("kinds", "size", x=np.zeros(3, np.float32)))
    assert tensors.from_proto(alone.outputs["n"]).tolist() == [4, 4, 4]
    answers = together(batching, [request("kinds", "size", x=np.zeros(4, np.float32)) for _ in range(2)])
    assert [tensors.from_proto(a.outputs["n"]).tolist() for a in answers] == [[8] * 4, [8] * 4]


def test_each_caller_gets_its_own_rows(batching: ServerProcess) -> None:
    values = [np.arange(i, i + 2, dtype=np.float32) for i in range(4)]
    answers = together(batching, [request("kinds", "id_float32", x=value) for value in values])
    for value, answer in zip(values, answers, strict=True):
        assert tensors.from_proto(answer.outputs["y"]).tolist() == value.tolist()


def test_rows_that_differ_in_shape_are_padded(batching: ServerProcess) -> None:
    narrow, wide = (np.arange(5, 5 + 4 * n, dtype=np.float32).reshape(4, n) for n in (2, 3))
    answers = together(batching, [request("kinds", "id_float32", x=x) for x in (narrow, wide)])
    found = [tensors.from_proto(answer.outputs["y"]) for answer in answers]
    assert found[0].tolist() == [[*row, 5.0] for row in narrow.tolist()]  # with the request's first value
    assert found[1].tolist() == wide.tolist()


def test_requests_that_cannot_be_batched(batching: ServerProcess) -> None:
    code, text = predict_refusal(batching, request("kinds", "size", x=np.zeros(9, np.float32)))
    assert code is Code.INVALID_ARGUMENT
    assert "Task size 9 is larger than maximum input batch size 8" in text
    code, text = predict_refusal(batching, request("kinds", "id_float32", x=np.array(1.0, np.float32)))
    assert code is Code.INVALID_ARGUMENT
    assert "at least one dimension" in text
    uneven = request("kinds", "two", a=np.zeros((2, 2), np.float32), b=np.zeros(3, np.int32))
    code, text = predict_refusal(batching, uneven)
    assert code is Code.INVALID_ARGUMENT
    assert "equal 0th-dimension size" in text
    code, text = predict_refusal(batching, request("kinds", "uneven", x=np.zeros(2, np.float32)))
    assert code is Code.FAILED_PRECONDITION
    assert "0th dimension" in text


def test_a_full_queue_answers_unavailable(batching: ServerProcess) -> None:
    full = np.zeros(8, np.float32)
    answers = together(batching, [request("kinds", "slow", x=full) for _ in range(8)])
    errors = [answer for answer in answers if isinstance(answer, grpc.RpcError)]
    assert 1 <= len(errors) < len(answers)
    assert {error.code() for error in errors} == {Code.UNAVAILABLE}
    assert "batch scheduling queue to which this task was submitted is full" in (errors[0].details() or "")


def test_a_tf2_signature_classifies_where_method_names_are_not_checked(
    batching: ServerProcess, server: ServerProcess
) -> None:
    message = protos.ClassificationRequest(model_spec={"name": "kinds", "signature_name": "tf2_classify"})
    example = message.input.example_list.examples.add()
    example.features.feature["x"].float_list.value.extend([0.25, 0.75])
    response = batching.call(protos.PREDICTION_SERVICE, "Classify", message)
    assert [entry.score for entry in response.result.classifications[0].classes] == [0.25, 0.75]
    several = protos.methods(protos.PREDICTION_SERVICE)["MultiInference"][0](input=message.input)
    several.tasks.add(model_spec=message.model_spec, method_name="tensorflow/serving/classify")
    (result,) = batching.call(protos.PREDICTION_SERVICE, "MultiInference", several).results
    assert result.classification_result == response.result
    with pytest.raises(grpc.RpcError) as caught:
        server.call(protos.PREDICTION_SERVICE, "Classify", message)
    assert caught.value.code() is Code.INVALID_ARGUMENT


def test_large_requests_are_split(start: StartServer, zoo: Path, tmp_path: Path) -> None:
    parameters = tmp_path / "batching.config"
    parameters.write_text(
        "max_batch_size { value: 16 } max_execution_batch_size { value: 4 } allowed_batch_sizes: 4 "
        "enable_large_batch_splitting { value: true } batch_timeout_micros { value: 0 }"
    )
    server = start(
        "--model_name=kinds", f"--model_base_path={zoo / 'kinds'}", "--enable_batching",
        f"--batching_parameters_file={parameters}",
    ).wait_ready()  # fmt: skip
    answer = server.predict(request("kinds", "size", x=np.zeros(10, np.float32)))
    assert tensors.from_proto(answer.outputs["n"]).tolist() == [4] * 10
    values = np.arange(10, dtype=np.float32)
    answer = server.predict(request("kinds", "id_float32", x=values))
    assert tensors.from_proto(answer.outputs["y"]).tolist() == values.tolist()


def run_to_the_end(*flags: str) -> tuple[int, str]:
    """Exit status and output of a server that should not start."""
    done = subprocess.run(
        [*program(), *flags],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_S,
    )
    return done.returncode, done.stdout


def test_command_lines_that_do_not_start_a_server(tmp_path: Path) -> None:
    config, batching = tmp_path / "models.config", tmp_path / "batching.config"
    config.write_text("model_config_list { config { nonsense: 1 } }")
    batching.write_text("max_batch_size { value: 8 }")
    (tmp_path / "ssl.config").write_text("client_verify: true")
    refused: dict[tuple[str, ...], str] = {
        (): "model_base_path",
        ("--port=abc", "--model_base_path=/x"): "port",
        (f"--model_config_file={config}",): "models.config",
        (f"--model_config_file={tmp_path}/none",): "none",
        ("--model_base_path=relative/path",): "absolute path",
        (f"--model_base_path={tmp_path}", f"--batching_parameters_file={batching}"): "enable_batching",
    }
    if IS_OURS:  # late versions of the original only warn
        refused[("--no_such_flag=1", "--model_base_path=/x")] = "unknown argument: --no_such_flag"
        # The original starts, and knows no authority whose clients it could let in.
        no_authority = (f"--model_base_path={tmp_path}", f"--ssl_config_file={tmp_path}/ssl.config")
        refused[no_authority] = "client_verify needs custom_ca"
        # The original would end with gRPC's complaint.
        (tmp_path / "paths.config").write_text('server_key: "/tls/key.pem" server_cert: "/tls/cert.pem"')
        paths = (f"--model_base_path={tmp_path}", f"--ssl_config_file={tmp_path}/paths.config")
        refused[paths] = "server_key holds nothing in PEM"
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda flags: run_to_the_end(*flags), refused)
    for (flags, text), (status, output) in zip(refused.items(), done, strict=True):
        assert status != 0, flags
        assert text in output, (flags, output)
        assert "Traceback" not in output


def test_the_version_is_printed() -> None:
    status, output = run_to_the_end("--version")
    assert status == 0
    assert "TensorFlow ModelServer:" in output
    assert "TensorFlow Library:" in output


def test_a_newest_version_that_fails_to_load_ends_the_start(zoo: Path, tmp_path: Path) -> None:
    """Under the default policy nobody asks for the older one, whether or not it would load."""
    from tests.modelserver import models

    shutil.copytree(zoo / "half_plus_two" / "1", tmp_path / "m" / "1")
    models.corrupt(tmp_path / "m" / "2")
    status, output = run_to_the_end(
        "--port=0", f"--grpc_socket_path={tmp_path}/s", "--model_name=m",
        f"--model_base_path={tmp_path / 'm'}", "--max_num_load_retries=0",
    )  # fmt: skip
    assert status != 0
    assert "Failed to start server. Error: " in output
    assert "1 servable(s) did not become available: {" in output
    assert "name: m version: 2" in output
    assert "version: 1" not in output


def test_sigterm_ends_a_server_that_still_waits_for_its_models(start: StartServer, tmp_path: Path) -> None:
    server = start("--model_name=m", f"--model_base_path={tmp_path / 'late'}")
    until(lambda: "Could not find base path" in server.log_text(), "it waits")
    server.process.send_signal(signal.SIGTERM)
    assert server.wait_exit() in ENDED


def test_a_unix_socket_beside_the_port_and_a_clean_end(start: StartServer, zoo: Path, tmp_path: Path) -> None:
    path = tmp_path / "grpc.sock"
    with socket.socket(socket.AF_UNIX) as left_by_one_that_was_killed:
        left_by_one_that_was_killed.bind(str(path))
    server = start(
        "--model_name=kinds", f"--model_base_path={zoo / 'kinds'}", f"--grpc_socket_path={path}"
    ).wait_ready()
    with grpc.insecure_channel(f"unix:{path}") as channel:
        call: Any = channel.unary_unary(f"/{protos.PREDICTION_SERVICE}/Predict")
        answer = protos.PredictResponse.FromString(
            call(request("kinds", "id_float32", x=ONE).SerializeToString(), timeout=30, wait_for_ready=True)
        )
    assert list(answer.outputs["y"].float_val) == [1.0]
    with ThreadPoolExecutor(2) as pool:
        slow = [pool.submit(server.predict, request("kinds", "slow", x=ONE)) for _ in range(2)]
        server.predict(request("kinds", "id_float32", x=ONE))
        server.process.send_signal(signal.SIGTERM)
        answers = [
            future.result(timeout=60)
            for future in slow
            if not isinstance(future.exception(60), grpc.RpcError)
        ]
    assert server.wait_exit() in ENDED
    assert all(list(answer.outputs["y"].float_val) == [1.0] for answer in answers)


def test_what_is_no_socket_is_not_taken_for_one_and_is_left_alone(zoo: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "precious", tmp_path / "folder"
    file.write_text("content")
    folder.mkdir()

    def run(path: Path) -> tuple[int, str]:
        model = ("--model_name=kinds", f"--model_base_path={zoo / 'kinds'}")
        return run_to_the_end("--port=0", f"--grpc_socket_path={path}", *model)

    for path in (file, folder):
        status, output = run(path)
        assert status != 0, path
        assert "Failed to start server. Error: " in output
        assert "Traceback" not in output
        assert not IS_OURS or f"--grpc_socket_path={path}" in output
    assert file.read_text() == "content"


@pytest.mark.skipif(not IS_OURS, reason="the original lets two servers share a port")
def test_a_second_server_on_the_same_port_is_refused(start: StartServer, zoo: Path) -> None:
    flags = ("--model_name=kinds", f"--model_base_path={zoo / 'kinds'}")
    first = start(*flags).wait_ready()
    status, output = run_to_the_end(*flags, f"--port={first.port}")
    assert status != 0
    assert "Failed to start server. Error: " in output
    assert f":{first.port}: Address already in use" in output
    assert "No address added" not in output, "gRPC has nothing to log"
    assert "adding/updating" not in output.lower(), "it is told before models are loaded"
    assert first.predict(request("kinds", "id_float32", x=ONE)).model_spec.version.value == 1


def test_more_calls_than_threads_are_refused(start: StartServer, zoo: Path) -> None:
    server = start(
        "--model_name=kinds", f"--model_base_path={zoo / 'kinds'}", "--grpc_max_threads=2"
    ).wait_ready()
    answers = together(server, [request("kinds", "slow", x=ONE) for _ in range(12)])
    errors = {answer.code() for answer in answers if isinstance(answer, grpc.RpcError)}
    assert errors == {Code.RESOURCE_EXHAUSTED}
    assert any(not isinstance(answer, grpc.RpcError) for answer in answers)
    assert server.predict(request("kinds", "id_float32", x=ONE)).model_spec.version.value == 1


def test_channel_arguments_are_numbers_where_they_are_numbers(start: StartServer, zoo: Path) -> None:
    arguments = "grpc.max_receive_message_length=2000,grpc.a=--5,grpc.b=99999999999999999999,grpc.c=x"
    server = start(
        "--model_name=kinds", f"--model_base_path={zoo / 'kinds'}", f"--grpc_channel_arguments={arguments}"
    ).wait_ready()
    assert server.predict(request("kinds", "id_float32", x=ONE)).model_spec.version.value == 1
    with pytest.raises(grpc.RpcError) as refused:
        server.predict(request("kinds", "id_float32", x=np.zeros(1000, np.float32)))
    assert refused.value.code() is Code.RESOURCE_EXHAUSTED


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def certificates(folder: Path) -> dict[str, bytes]:
    """A certificate for localhost, a client's, and the authority that signed both."""
    authority = [f"-keyout={folder}/ca.key", f"-out={folder}/ca.crt"]
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test authority",
            *[part for pair in authority for part in pair.split("=")])  # fmt: skip
    (folder / "san").write_text("subjectAltName=DNS:localhost")
    for who in ("server", "client"):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={who}",
                "-keyout", f"{folder}/{who}.key", "-out", f"{folder}/{who}.csr")  # fmt: skip
        openssl("x509", "-req", "-in", f"{folder}/{who}.csr", "-CA", f"{folder}/ca.crt", "-CAkey",
                f"{folder}/ca.key", "-CAcreateserial", "-days", "2", "-extfile", f"{folder}/san",
                "-out", f"{folder}/{who}.crt")  # fmt: skip
    return {path.name: path.read_bytes() for path in folder.glob("*.*")}


@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl, which makes the certificates, is not there"
)
def test_mutual_tls(start: StartServer, zoo: Path, tmp_path: Path) -> None:
    pem = certificates(tmp_path)
    config = tmp_path / "ssl.config"
    message = protos.SSLConfig(
        server_key=pem["server.key"].decode(), server_cert=pem["server.crt"].decode(),
        custom_ca=pem["ca.crt"].decode(), client_verify=True,
    )  # fmt: skip
    config.write_text(str(message))
    server = start("--model_name=kinds", f"--model_base_path={zoo / 'kinds'}", f"--ssl_config_file={config}")
    until(lambda: "Running gRPC ModelServer at 0.0.0.0" in server.log_text(), "it listens")
    status = protos.GetModelStatusRequest(model_spec={"name": "kinds"}).SerializeToString()

    def call(credentials: Any) -> Any:
        channel = (
            grpc.secure_channel(f"localhost:{server.port}", credentials)
            if credentials
            else grpc.insecure_channel(f"localhost:{server.port}")
        )
        with channel:
            stub: Any = channel.unary_unary(f"/{protos.MODEL_SERVICE}/GetModelStatus")
            return protos.GetModelStatusResponse.FromString(stub(status, timeout=20))

    known = grpc.ssl_channel_credentials(pem["ca.crt"], pem["client.key"], pem["client.crt"])
    assert [entry.version for entry in call(known).model_version_status] == [1]
    for unknown in (None, grpc.ssl_channel_credentials(pem["ca.crt"])):
        with pytest.raises(grpc.RpcError) as caught:
            call(unknown)
        assert caught.value.code() is Code.UNAVAILABLE


def test_killed_in_the_middle_of_a_load_it_starts_again(
    start: StartServer, zoo: Path, tmp_path: Path
) -> None:
    from tests.modelserver import models

    models.slow_to_load(tmp_path / "slow" / "1", steps=2000)
    base = str(zoo / "half_plus_two")
    config = tmp_path / "models.config"
    both = config_of({"name": "m", "base_path": base}, {"name": "slow", "base_path": str(tmp_path / "slow")})
    config.write_text(str(both))
    first = start(f"--model_config_file={config}")
    until(lambda: "name: slow version: 1" in first.log_text(), "the slow load has begun")
    first.process.kill()
    assert first.wait_exit() == -signal.SIGKILL
    config.write_text(str(config_of({"name": "m", "base_path": base})))
    second = start(f"--model_config_file={config}").wait_ready()
    assert second.predict(request("m", x=ONE)).model_spec.version.value == 3
