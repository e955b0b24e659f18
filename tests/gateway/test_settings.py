"""Settings: a flag beats the environment, which beats the file, which beats the default."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from serving import settings
from serving.errors import InvalidInput


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_order_of_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.load().http_port == 8080
    (tmp_path / "sluice.toml").write_text('http_port = 1111\nmodels = ["a", "b"]\n')
    assert settings.load().http_port == 1111
    assert settings.load().models == ("a", "b")
    monkeypatch.setenv("SLUICE_HTTP_PORT", "2222")
    monkeypatch.setenv("SLUICE_MODELS", "c, d")
    assert settings.load().http_port == 2222
    assert settings.load().models == ("c", "d")
    assert settings.load(http_port=3333).http_port == 3333
    assert settings.load(http_port=None).http_port == 2222


def test_errors_name_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match=r"http_port: .*65535"):
        settings.load(http_port=99999)
    with pytest.raises(InvalidInput, match="default_model 'x' is not among models: a"):
        settings.load(models="a", default_model="x")
    monkeypatch.setenv("SLUICE_MAX_BATCH", "many")
    with pytest.raises(InvalidInput, match=r"max_batch \(SLUICE_MAX_BATCH\): input should .*, got 'many'"):
        settings.load()
    with pytest.raises(InvalidInput, match=r"max_batch: input should be greater .*, got 0"):
        settings.load(max_batch=0)
    monkeypatch.delenv("SLUICE_MAX_BATCH")
    (tmp_path / "sluice.toml").write_text("http_prot = 1\n")
    with pytest.raises(InvalidInput, match=r"there is no setting http_prot; did you mean http_port\?"):
        settings.load()
    (tmp_path / "sluice.toml").write_text("http_port = -1\n")
    with pytest.raises(InvalidInput, match=r"http_port \(sluice.toml\): input should be .*, got -1"):
        settings.load()
    (tmp_path / "sluice.toml").write_text("http_port = \n")
    with pytest.raises(InvalidInput, match=r"sluice.toml cannot be read: .*line 1"):
        settings.load()


def test_a_flag_is_not_told_as_if_it_came_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_HTTP_PORT", "8080")
    with pytest.raises(InvalidInput, match="bad settings: http_port: input should be"):
        settings.load(http_port=99999)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"tls_certificate": "c.pem"}, "tls_certificate and tls_key go together"),
        ({"tls_key": "k.pem"}, "tls_certificate and tls_key go together"),
        ({"tls_client_ca": "ca.pem"}, "tls_client_ca needs tls_certificate and tls_key"),
    ],
)
def test_half_of_what_tls_needs_is_refused(values: dict[str, str], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        settings.load(**values)


def test_with_a_certificate_urls_are_of_tls() -> None:
    assert settings.load(http_host="::1").http_url(1) == "http://[::1]:1"
    tls = settings.load(tls_certificate="c.pem", tls_key="k.pem")
    assert (tls.http_url(443), tls.grpc_address(9000)) == ("https://127.0.0.1:443", "127.0.0.1:9000")


def test_a_default_model_may_be_one_that_is_found_later() -> None:
    """`sluice serve` looks for models in a folder."""
    assert settings.load(default_model="digits").default_model == "digits"


@pytest.mark.parametrize("name", ["grpc-user", "user-bin", "x user", ""])
def test_a_header_that_grpc_keeps_for_itself_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be a header of HTTP and of gRPC"):
        settings.load(routing_header=name)


def test_traces_are_recorded_only_where_they_can_go_somewhere() -> None:
    assert settings.load(traces_share=0.5).recorded_share == 0.0
    assert settings.load(traces_share=0.5, traces_endpoint="http://collector:4317").recorded_share == 0.5


def test_settings_stay_as_they_were_read() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        settings.load().max_batch = 1


def test_numbers_come_with_commas_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_BATCH_SIZES", "1, 8,,32,")
    assert settings.load().batch_sizes == (1, 8, 32)
    monkeypatch.setenv("SLUICE_BATCH_SIZES", "1,x")
    with pytest.raises(InvalidInput, match=r"batch_sizes\[1\] \(SLUICE_BATCH_SIZES\): input .*, got 'x'"):
        settings.load()


@pytest.mark.parametrize(
    ("name", "nonsense", "told"),
    [
        ("request_timeout_s", "inf", "less than or equal to 31536000, got 'inf'"),
        ("request_timeout_s", "1e10", "less than or equal to 31536000"),  # gRPC: it has passed
        ("drain_timeout_s", "nan", "got 'nan'"),
        ("status_interval_s", "1e-9", "greater than or equal to 0.01"),
        ("workers", "99999", "less than or equal to 1024"),
        ("max_body_bytes", str(2**32), "less than or equal to 2000000000"),  # gRPC counts in 31 bits
        ("rollout_store", "", "it is empty; give it a value, or leave the setting out"),
        ("rollout_namespace", "", "it is empty"),  # it would be every namespace
        ("jwt_issuer", "", "it is empty"),  # no token would have it
        ("http_host", "", "at least 1 character"),  # it would be every interface
        ("traces_endpoint", "collector:4317", "it is not a URL; write http://HOST:PORT"),
        ("prometheus_url", "prometheus:9090", "it is not a URL; write http://HOST:PORT"),
        ("prometheus_url", "http://prometheus:nine", "it is not a URL; write http://HOST:PORT"),
        ("prometheus_url", "http://prometheus:99999", "it is not a URL; write http://HOST:PORT"),
        ("prometheus_url", "http://prometheus:0", "it is not a URL; write http://HOST:PORT"),
    ],
)
def test_nonsense_is_refused_with_what_would_be_right(
    name: str, nonsense: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"SLUICE_{name.upper()}"
    monkeypatch.setenv(variable, nonsense)
    with pytest.raises(InvalidInput, match=rf"{name} \({variable}\): .*{re.escape(told)}"):
        settings.load()


def test_every_batch_has_a_size_that_it_is_filled_up_to() -> None:
    with pytest.raises(InvalidInput, match=r"batch_sizes ends at 16, and batches have up to 32 images"):
        settings.load(batch_sizes="16,8")
    assert settings.load(batch_sizes="8,16", max_batch=16).batch_sizes == (8, 16)


def test_variables_that_look_like_settings_are_told_and_no_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.misspelled() == []
    monkeypatch.setenv("SLUICE_HTTP_PRT", "1")
    monkeypatch.setenv("SLUICE_GATEWAY_SERVICE_HOST", "10.0.0.1")  # Kubernetes makes these
    monkeypatch.setenv("SLUICE_PORT", "tcp://10.0.0.1:80")
    assert settings.misspelled() == ["SLUICE_HTTP_PRT is not a setting; did you mean SLUICE_HTTP_PORT?"]
    assert settings.load().http_port == 8080


@pytest.mark.parametrize("right", ["", 'namespace="sluice"', 'a=~"x.*", b!="\\"}" '])
def test_a_selector_of_series_is_taken(right: str) -> None:
    assert settings.load(prometheus_selector=right).prometheus_selector == right.strip()


@pytest.mark.parametrize(
    "wrong", ["sluice", "namespace=sluice", '{namespace="sluice"}', 'a="b"} or up{c="d"']
)
def test_a_selector_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidInput, match=r"prometheus_selector: .* are not PromQL label matchers"):
        settings.load(prometheus_selector=wrong)


def test_rollouts_are_kept_in_one_place(tmp_path: Path) -> None:
    told = r"in the folder .* \(rollout_store\) or in the namespace sluice \(rollout_namespace\); set one"
    with pytest.raises(InvalidInput, match=told):
        settings.load(rollout_store=tmp_path, rollout_namespace="sluice")


def test_every_setting_says_why() -> None:
    """A word under each limit: the reader of the file must not have to guess."""
    source = Path(settings.__file__).read_text().splitlines()
    bare = [
        name
        for name, field in settings.Settings.model_fields.items()
        if isinstance(field.default, int | float) and not isinstance(field.default, bool)
        for line in source
        if line.strip().startswith(f"{name}:") and '"""' not in source[source.index(line) + 1]
    ]
    assert bare == []
