"""Every setting of the gateway: its unit, its default, and the reason for it.

This is the only reader of the environment. A value comes from, in this order: a command's flag, an
environment variable (`SLUICE_` and the name in capitals), `sluice.toml` in the working folder, the
default below.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from serving import faults
from serving.cores import usable_cores
from serving.durations import LONGEST_S
from serving.errors import InvalidInput

CONFIG_FILE = "sluice.toml"
_PREFIX = "SLUICE_"

# What stands in braces after the name of a metric in PromQL.
_MATCHER = r'[a-zA-Z_][a-zA-Z0-9_]*\s*(?:=~|!~|!=|=)\s*"(?:[^"\\\n]|\\.)*"'
_MATCHERS = re.compile(rf"\s*(?:{_MATCHER}(?:\s*,\s*{_MATCHER})*)?\s*")

# What gRPC takes as a key of metadata; a header of HTTP may have more characters.
_HEADER = re.compile(r"[a-z0-9_.-]{1,100}")

# RFC 6454, 6.2: nothing after the port, not even a slash.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\sA-Z*]+")

# What OpenTelemetry and httpx take; without the scheme the one would try TLS, and the other nothing.
_URL = re.compile(r"https?://[^\s/]+(?:/\S*)?")

# Processes, and threads, beyond which no machine has cores for them.
_MOST_PARALLEL = 1024


def _not_empty(value: Any) -> Any:
    if value == "":  # a path would be the working folder, and a name nobody's
        raise ValueError("it is empty; give it a value, or leave the setting out")
    return value


def _is_url(text: str) -> str:
    try:
        is_one = _URL.fullmatch(text) is not None and urlsplit(text).port != 0
    except ValueError:  # the port is no number, or the host's brackets do not match
        is_one = False
    if not is_one:
        raise ValueError("it is not a URL; write http://HOST:PORT or https://HOST:PORT")
    return text


CommaSeparated = Annotated[tuple[str, ...], NoDecode]
Host = Annotated[str, Field(min_length=1)]
NamedPath = Annotated[Path, BeforeValidator(_not_empty)]
Name = Annotated[str, BeforeValidator(_not_empty)]
Url = Annotated[str, AfterValidator(_is_url)]
Duration = Annotated[float, Field(gt=0, le=LONGEST_S)]
Interval = Annotated[float, Field(ge=0.01, le=LONGEST_S)]
AtLeastOne = Annotated[int, Field(ge=1)]
Parallel = Annotated[int, Field(ge=1, le=_MOST_PARALLEL)]
Share = Annotated[float, Field(ge=0, le=1)]
Port = Annotated[int, Field(ge=0, le=65535)]


class Settings(BaseSettings):
    """Settings of one gateway process. Durations are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="forbid", frozen=True)

    http_host: Host = "127.0.0.1"
    """Loopback by default: listening on a network is to be a decision."""
    http_port: Port = 8080
    """The port of the HTTP API; 0 takes any free one."""
    grpc_host: Host = "127.0.0.1"
    grpc_port: Port = 9000
    """The port of the gRPC API; 0 takes any free one."""

    replicas: CommaSeparated = ()
    """Addresses of the model servers' gRPC ports: `host:port`, `unix:/path`, or `dns:HOST:PORT` for every
    address that a name has at the moment, such as a headless Service of Kubernetes."""
    models: CommaSeparated = ()
    """Names of the models to serve. TensorFlow Serving cannot be asked which it has."""
    default_model: Name | None = None
    """Which model `/v1/classify` uses. None: the only one, if there is just one."""

    keys_file: NamedPath | None = None
    """API keys (`sluice keys` writes it); watched. None: no key is required."""
    jwks_file: NamedPath | None = None
    """Public keys (JWKS) of tokens that are accepted in place of an API key; watched. None: no tokens."""
    jwt_issuer: Name | None = None
    """The `iss` that a token must have. None: any."""
    jwt_audience: Name | None = None
    """The `aud` that a token must have. None: any."""

    tls_certificate: NamedPath | None = None
    """PEM chain for both ports. None: no TLS, which is for loopback and for behind a proxy."""
    tls_key: NamedPath | None = None
    """PEM private key of the certificate."""
    tls_client_ca: NamedPath | None = None
    """PEM authorities; when set, a client must show a certificate of one of them (mutual TLS)."""

    models_dir: NamedPath = Path("models")
    """`sluice serve` only: the folder with a folder for each model."""
    model_server: Name | None = None
    """`sluice serve` only: a program that takes `tensorflow_model_server`'s flags. None: Sluice's own."""

    rollout_store: NamedPath | None = None
    """Folder in which rollouts are kept, shared by gateways on one machine. With it a new version comes in
    only by a rollout. None: the newest version serves once it is loaded, as in TensorFlow Serving."""
    rollout_plan: NamedPath | None = None
    """Plan, YAML or TOML, of rollouts that start by themselves (`on_new_version: rollout`)."""
    rollout_interval_s: Interval = 1.0
    """How often rollouts are looked at: a bad version is gone within this of enough evidence."""
    rollout_namespace: Name | None = None
    """In a Kubernetes cluster: the namespace whose ModelRollouts are followed, in place of a folder. It needs
    `prometheus_url`, since one gateway sees only its own requests."""
    prometheus_url: Url | None = None
    """Prometheus that scrapes all gateways, such as http://prometheus:9090."""
    prometheus_selector: str = ""
    """Label matchers of this service's gateways in it, such as `namespace="sluice"`. Empty: all that it
    scrapes are this service's. If others are among them, their requests would count as ours."""
    feedback_key_file: NamedPath | None = None
    """In a cluster: 32 random bytes that sign prediction ids, the same for every gateway. None: each has its
    own, and takes feedback on its own predictions only. With a folder of rollouts the key lies there."""
    routing_header: str = "x-routing-key"
    """HTTP header, and gRPC metadata key, whose value keeps a caller on one version while a new one is let
    in, such as `x-user-id`; a request without it is routed on its own."""
    replica_models_dir: Name = "/models"
    """`sluice gateway` with rollouts only: where the replicas find the models' folders. TensorFlow Serving
    takes a bucket, too, such as `gs://models`."""

    cors_origins: CommaSeparated = ()
    """Origins such as `https://app.example` whose pages may read answers of the gateway (CORS); `*`: any."""

    workers: Parallel = 1
    """Processes of this gateway. One feeds a small GPU or two cores; with more, `max_in_flight`,
    `max_in_flight_bytes`, `max_memory_bytes` and `decode_threads` are divided among them, and keys' limits
    apply to each."""

    max_body_bytes: Annotated[int, Field(ge=1, le=2_000_000_000)] = 32 * 2**20
    """One request's body, 2 GB at most, which is what gRPC and protobuf can count. A 48-megapixel photograph
    as JPEG is about 25 MB."""
    max_image_pixels: AtLeastOne = 64_000_000
    """Width times height of one image, from its header: 64 MP decode to 192 MB, and phones make 50."""
    max_images: AtLeastOne = 256
    """Images in one request; more are better sent as several, which can go to several replicas."""
    default_top_k: AtLeastOne = 5
    """Classes for each image when the request does not say: what people show in a list."""

    request_timeout_s: Duration = 30.0
    """The deadline when the caller gives none; TensorFlow Serving's REST uses the same."""
    header_timeout_s: Duration = 10.0
    """How long the headers of one HTTP request may take; a phone on a bad line needs one or two."""
    idle_timeout_s: Duration = 75.0
    """How long an idle HTTP connection is kept. It must be longer than the proxy in front keeps one (nginx
    and AWS 60 s, Google's load balancers 600 s), or that sends requests into a connection that closes."""
    connection_age_s: Duration = 600.0
    """After how long, give or take a tenth, a client is told to reconnect, once its request is answered. A
    Kubernetes Service balances connections, not requests: a gateway that was added would get none."""
    body_grace_s: Duration = 10.0
    """How long a body may come in, or an answer be read, slower than `min_body_bytes_per_s` before the client
    is given up."""
    min_body_bytes_per_s: AtLeastOne = 1024
    """The slowest body or answer that is waited for, on average after the grace: a 1990s modem did 5,000."""
    max_in_flight: AtLeastOne = 1024
    """Requests admitted at once; the rest is refused immediately instead of waiting past its deadline. An
    eighth of it, and of the bytes, is reserved for callers who hold less than an equal share; without keys
    callers are not told apart, and it is reserved for such models, if there are several."""
    max_in_flight_bytes: AtLeastOne = 512 * 2**20
    """Bodies held at once: what bounds memory when bodies are large. Where memory is limited (a container's,
    or RLIMIT_AS) it is a third of what is left at the start, if that is less. As much again may be held of
    answers over HTTP that wait to be read; beyond that, clients are cut off that read nothing for longest."""
    max_memory_bytes: AtLeastOne | None = None
    """What the process may have resident. Once only a fifth is left of what was free at the start, requests
    are refused before anything of them is read. None: what its container or RLIMIT_AS allows, if they do."""

    target_latency_s: Duration = 2.0
    """If requests take longer than this, counted from when their bodies are read, the gateway takes fewer at
    once for their model, down to two full batches per replica: people give up after a few seconds, and a
    longer queue does not raise throughput."""

    max_batch: AtLeastOne = 32
    """Images in one call to a replica. Beyond 32 throughput hardly grows, and latency does."""
    batch_sizes: Annotated[tuple[AtLeastOne, ...], NoDecode] = ()
    """Batches are padded to the next of these sizes, for a replica that compiles each size separately, as XLA
    does. The largest is `max_batch`, or more. Empty: they leave as they are."""
    calls_per_replica: AtLeastOne = 2
    """Batches in flight to one replica: one that computes, and one ready behind it. Models share them, but
    each has one in any case: a light model must not wait for a heavy one's."""
    hedge: bool = False
    """Whether a batch that takes longer than 95 % of those of its size also goes to a second replica (a
    hedged call), if one has a free place; the first answer wins. Off: it costs up to a call in twenty, out of
    the retry budget, and helps where single replicas are slow now and then, not where all are busy."""
    decode_threads: Parallel = Field(default_factory=usable_cores)
    """Threads that decode images. The decoders release the interpreter lock, so there is one per core, of
    those that the process may use and its container's limit has time for."""

    access_log_share: Share = 0.01
    """Share of the successful requests that are logged; failed ones get a line each, up to 20 a second."""
    traces_endpoint: Url | None = None
    """Where traces go, by OTLP over gRPC, such as `http://collector:4317`. None: none are made."""
    traces_share: Share = 0.1
    """Share of the traces that begin here that is sampled; a caller's trace is sampled if the caller does."""

    discovery_interval_s: Interval = 5.0
    """How often `dns:` names are resolved again; Kubernetes' DNS lets an answer live for 5 s."""
    status_interval_s: Interval = 1.0
    """How often replicas are asked which versions they have; TensorFlow Serving polls its folder as often."""
    drain_timeout_s: Duration = 30.0
    """How long requests in flight may take to finish after SIGTERM; Kubernetes allows 30 by default."""

    def http_url(self, port: int) -> str:
        """Where HTTP is served, when the port has been chosen."""
        scheme = "https" if self.tls_certificate else "http"
        return f"{scheme}://{_in_url(self.http_host)}:{port}"

    def grpc_address(self, port: int) -> str:
        """Where gRPC is served, when the port has been chosen."""
        return f"{_in_url(self.grpc_host)}:{port}"

    @property
    def recorded_share(self) -> float:
        """Share of the traces that begin here that is sampled: none without somewhere to send them."""
        return 0.0 if self.traces_endpoint is None else self.traces_share

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the hook's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the hook's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=CONFIG_FILE)

    @field_validator("replicas", "models", "batch_sizes", "cors_origins", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("routing_header")
    @classmethod
    def _header_of_both_protocols(cls, value: str) -> str:
        name = value.lower()
        if not _HEADER.fullmatch(name) or name.startswith("grpc-") or name.endswith("-bin"):
            raise ValueError(
                f"{value[:100]!r} cannot be a header of HTTP and of gRPC: letters, digits, `-`, `_`, `.`; "
                "not beginning with `grpc-` nor ending with `-bin`, such as x-user-id"
            )
        return name

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            if each != "*" and not _ORIGIN.fullmatch(each):
                raise ValueError(
                    f"{each[:100]!r} is not an origin as browsers send it: scheme, host in lower case, and "
                    "a port that is not the scheme's, such as https://app.example; * stands for any"
                )
        return value

    @field_validator("prometheus_selector")
    @classmethod
    def _are_matchers(cls, value: str) -> str:
        if not _MATCHERS.fullmatch(value):
            raise ValueError(f'{value[:100]!r} are not PromQL label matchers, such as namespace="sluice"')
        return value.strip()

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together; set both or none")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        return self

    @model_validator(mode="after")
    def _rollouts_are_in_one_place(self) -> Self:
        if self.rollout_store is not None and self.rollout_namespace is not None:
            raise ValueError(
                f"rollouts are kept in the folder {self.rollout_store} (rollout_store) or in the namespace "
                f"{self.rollout_namespace} (rollout_namespace); set one of the two"
            )
        return self

    @model_validator(mode="after")
    def _every_batch_has_a_size(self) -> Self:
        if self.batch_sizes and max(self.batch_sizes) < self.max_batch:
            raise ValueError(
                f"batch_sizes ends at {max(self.batch_sizes)}, and batches have up to {self.max_batch} "
                "images (max_batch); make them the same"
            )
        return self

    @model_validator(mode="after")
    def _default_model_is_served(self) -> Self:
        if self.default_model is not None and self.models and self.default_model not in self.models:
            raise ValueError(
                f"default_model {self.default_model!r} is not among models: {', '.join(self.models)}"
            )
        return self


def _told(fault: Mapping[str, Any], flags: Mapping[str, Any]) -> str:
    """A fault, with where the value came from if that was no flag."""
    where = faults.dotted(fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"there is no setting {where}{_nearest(where)}"
    name = str(fault["loc"][0]) if fault["loc"] else ""
    variable = f"{_PREFIX}{name.upper()}"
    if name in flags:
        source = ""
    elif variable in os.environ:
        source = f" ({variable})"
    else:
        source = f" ({CONFIG_FILE})" if name else ""
    return f"{where or 'settings'}{source}: {faults.message(fault)}"


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, Settings.model_fields, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def misspelled() -> list[str]:
    """Environment variables that look like settings and are none, with what may be meant.

    They are no errors: Kubernetes makes variables of its own for each Service (`SLUICE_PORT`, ...).
    """
    found = []
    for variable in sorted(os.environ):
        name = variable.removeprefix(_PREFIX).lower()
        if variable.startswith(_PREFIX) and name not in Settings.model_fields:
            near = difflib.get_close_matches(name, Settings.model_fields, n=1, cutoff=0.85)
            found += [f"{variable} is not a setting; did you mean {_PREFIX}{each.upper()}?" for each in near]
    return found


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def load(**flags: Any) -> Settings:
    """Settings from flags (None means not given), environment and `sluice.toml`.

    Raises:
        InvalidInput: a value is out of range or a name is unknown; the text names each.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise InvalidInput(
            "bad settings: " + "; ".join(_told(each, given) for each in error.errors())
        ) from error
    except ValueError as error:  # a file that is not TOML
        raise InvalidInput(f"{CONFIG_FILE} cannot be read: {error}") from error
