"""Every form of a flag, and what is refused."""

from __future__ import annotations

import pytest

from serving.modelserver import flags
from serving.modelserver.flags import FlagError, Flags


def test_the_defaults_are_the_originals() -> None:
    parsed, ignored = flags.parse([])
    assert parsed == Flags()
    assert ignored == []
    defaults = {
        "port": 8500,
        "rest_api_port": 0,
        "rest_api_timeout_in_ms": 30_000,
        "rest_api_enable_cors_support": False,
        "model_name": "default",
        "model_config_file_poll_wait_seconds": 0,
        "file_system_poll_wait_seconds": 1,
        "allow_version_labels_for_unavailable_models": False,
        "max_num_load_retries": 5,
        "load_retry_interval_micros": 60_000_000,
        "enable_model_warmup": True,
        "enable_batching": False,
        "saved_model_tags": "serve",
        "enable_signature_method_name_check": True,
        "enable_grpc_healthcheck_service": False,
    }
    assert {name: getattr(parsed, name) for name in defaults} == defaults


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--port=9"], "port", 9),
        (["--port", "9"], "port", 9),
        (["-port=9"], "port", 9),
        (["--port=65535"], "port", 65535),
        (["--load-retry-interval-micros=9"], "load_retry_interval_micros", 9),
        (["--load_retry_interval_micros=-1"], "load_retry_interval_micros", -1),
        (["--model_name=a=b"], "model_name", "a=b"),
        (["--model_name", "x"], "model_name", "x"),
        (["--enable_batching"], "enable_batching", True),
        (["--enable_batching=true"], "enable_batching", True),
        (["--enable_batching", "true"], "enable_batching", True),
        (["--enable_batching", "TRUE"], "enable_batching", True),
        (["--enable_model_warmup", "False"], "enable_model_warmup", False),
        (["--noenable_model_warmup"], "enable_model_warmup", False),
        (["--enable_model_warmup", "--noenable_model_warmup"], "enable_model_warmup", False),
    ],
)
def test_every_form_is_taken(argv: list[str], name: str, value: object) -> None:
    parsed, _ = flags.parse([*argv, "--rest_api_port=7"])
    assert getattr(parsed, name) == value
    assert parsed.rest_api_port == 7


@pytest.mark.parametrize(
    ("words", "value"), [("true t yes y 1 True YES", True), ("false f no n 0 False NO", False)]
)
def test_a_boolean_has_these_words(words: str, value: bool) -> None:
    for word in words.split():
        parsed, _ = flags.parse([f"--enable_model_warmup={word}", f"--enable_batching={word}"])
        assert (parsed.enable_model_warmup, parsed.enable_batching) == (value, value), word


def test_every_flag_of_the_original_is_taken() -> None:
    argv = [
        "--enable_per_model_batching_parameters",
        "--num_unload_threads=2",
        "--flush_filesystem_caches",
        "--tensorflow_session_config_file=/session",
        "--use_alts_credentials",
        "--platform_config_file=/platform",
        "--per_process_gpu_memory_fraction=0.5",
        "--remove_unused_fields_from_bundle_metagraph",
        "--prefer_tflite_model",
        "--use_tflite_model",
        "--num_tflite_pools=1",
        "--num_tflite_interpreters_per_pool=1",
        "--xla_cpu_compilation_enabled",
        "--xla_gpu_compilation_enabled",
        "--enable_profiler",
        "--thread_pool_factory_config_file=/pool",
        "--mixed_precision=bfloat16",
        "--skip_initialize_tpu",
        "--force_allow_any_version_labels_for_unavailable_models",
        "--enforce_session_run_timeout",
    ]
    _, ignored = flags.parse(argv)
    assert ignored == [each.strip("-").partition("=")[0] for each in argv]


def test_flags_without_sense_here_are_taken_and_told() -> None:
    _, ignored = flags.parse(["--per_process_gpu_memory_fraction=0.5", "--flush_filesystem_caches=false"])
    assert ignored == ["per_process_gpu_memory_fraction", "flush_filesystem_caches"]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--nope=1"], "unknown argument: --nope=1"),
        (["--nomodel_name"], "unknown argument: --nomodel_name"),
        (["--noenable_batching=true"], "unknown argument: --noenable_batching=true"),
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
    told = [line.split("\t")[1:] for line in usage.splitlines() if line.count("\t") == 3]
    texts = {flag.strip(): (kind, text) for flag, kind, text in told}
    assert texts["--grpc_max_threads=0"][0] == "int"
    assert texts['--model_name="default"'] == (
        "str",
        "name of the model (ignored with --model_config_file)",
    )
    assert texts["--enable_batching=false"] == ("bool", "join requests of many callers into one run")
