"""Every form of a flag, and what is refused."""

from __future__ import annotations

import pytest

from serving.modelserver import flags
from serving.modelserver.flags import FlagError, Flags


def test_the_defaults_are_the_originals() -> None:
    parsed, ignored = flags.parse([])
    assert parsed == Flags()
    assert (parsed.port, parsed.rest_api_timeout_in_ms, parsed.max_num_load_retries) == (8500, 30000, 5)
    assert ignored == []


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--port=9"], "port", 9),
        (["--port", "9"], "port", 9),
        (["-port=9"], "port", 9),
        (["--load_retry_interval_micros=-1"], "load_retry_interval_micros", -1),
        (["--model_name=a=b"], "model_name", "a=b"),
        (["--model_name", "x"], "model_name", "x"),
        (["--enable_batching"], "enable_batching", True),
        (["--enable_batching=true"], "enable_batching", True),
        (["--enable_batching", "true"], "enable_batching", True),
        (["--enable_batching=1"], "enable_batching", True),
        (["--enable_model_warmup=false"], "enable_model_warmup", False),
        (["--noenable_model_warmup"], "enable_model_warmup", False),
        (["--enable_model_warmup", "--noenable_model_warmup"], "enable_model_warmup", False),
    ],
)
def test_every_form_is_taken(argv: list[str], name: str, value: object) -> None:
    parsed, _ = flags.parse([*argv, "--rest_api_port=7"])
    assert getattr(parsed, name) == value
    assert parsed.rest_api_port == 7


def test_flags_without_sense_here_are_taken_and_told() -> None:
    _, ignored = flags.parse(["--per_process_gpu_memory_fraction=0.5", "--flush_filesystem_caches=false"])
    assert ignored == ["per_process_gpu_memory_fraction", "flush_filesystem_caches"]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--nope=1"], "unknown argument: --nope=1"),
        (["--nomodel_name"], "unknown argument: --nomodel_name"),
        (["model"], "unknown argument: model"),
        (["--"], "unknown argument: --"),
        (["--port=x"], "--port=x is not a whole number"),
        (["--port"], "--port needs a value"),
        (["--enable_batching=maybe"], "--enable_batching=maybe is not true or false"),
        (["--per_process_gpu_memory_fraction=x"], "is not a number"),
        (["--port=65536"], "--port=65536 is not a TCP port (0 to 65535)"),
        (["--rest_api_port=70000"], "--rest_api_port=70000 is not a TCP port"),
        (["--rest_api_port=-1"], "--rest_api_port=-1 is not a TCP port"),
        (["--rest_api_num_threads=-1"], "--rest_api_num_threads=-1 is not a number of threads"),
        (["--grpc_max_threads=-3"], "--grpc_max_threads=-3 is not a number of threads"),
        (["--num_load_threads=-1"], "--num_load_threads=-1 is not a number of threads"),
        (["--model_name=a\udcff"], "--model_name=b'a\\xff' is not text in UTF-8"),
        (["--model_base_path=/\udcff"], "--model_base_path=b'/\\xff' is not text in UTF-8"),
    ],
)
def test_what_is_wrong_is_refused_by_name(argv: list[str], text: str) -> None:
    with pytest.raises(FlagError) as caught:
        flags.parse(argv)
    assert text in str(caught.value)


def test_the_usage_names_every_flag() -> None:
    usage = flags.usage()
    assert all(f"--{name}" in usage for name in flags.WITHOUT_EFFECT)
    assert "--grpc_max_threads=0" in usage
