"""The commands `serve`, `demo`, `gateway`, `model-server` and `models`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.errors import InvalidInput, SluiceError, innermost

if TYPE_CHECKING:  # imported when a command runs, so that --help stays fast
    import httpx
    from rich.console import Console

    from serving.main import Up, WhileUp
    from serving.settings import Settings

_TIMEOUT_S = 10.0
# TensorFlow takes seconds to load, on a busy machine tens of them.
_DEMO_TIMEOUT_S = 120.0

SAMPLE = Path(__file__).parent / "samples" / "seven.png"

HttpHost = Annotated[str | None, typer.Option(help="Address of the HTTP API.", show_default="127.0.0.1")]
HttpPort = Annotated[int | None, typer.Option(help="Port of the HTTP API; 0: any free.", show_default="8080")]
GrpcHost = Annotated[str | None, typer.Option(help="Address of the gRPC API.", show_default="127.0.0.1")]
GrpcPort = Annotated[int | None, typer.Option(help="Port of the gRPC API; 0: any free.", show_default="9000")]
ModelsDir = Annotated[
    Path | None, typer.Option("--models", help="Folder with a folder for each model.", show_default="models")
]
ModelServer = Annotated[
    str | None,
    typer.Option(help="Program that takes tensorflow_model_server's flags.", show_default="Sluice's own"),
]
Keys = Annotated[
    Path | None,
    typer.Option("--keys", help="File of API keys (see `sluice keys`).", show_default="no key is asked for"),
]
Rollouts = Annotated[
    Path | None,
    typer.Option(
        "--rollouts",
        help="Folder of rollouts (see `sluice rollout`).",
        show_default="the newest version serves",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(help="Gateway processes on the same ports, for more cores.", show_default="1"),
]
ApiKey = Annotated[
    str | None, typer.Option(envvar="SLUICE_API_KEY", help="API key or token; better by environment.")
]
Url = Annotated[str, typer.Option(envvar="SLUICE_URL", help="Where the gateway is.")]

START_ONE = "start one: sluice serve, or pass --url"


def serve(
    models: ModelsDir = None,
    model_server: ModelServer = None,
    http_host: HttpHost = None,
    http_port: HttpPort = None,
    grpc_host: GrpcHost = None,
    grpc_port: GrpcPort = None,
    keys: Keys = None,
    rollouts: Rollouts = None,
    workers: Workers = None,
) -> None:
    """Serve a folder of models on this machine: a model server, and the gateway in front.

    Versions that appear in the folder are taken in, and versions that vanish are let go. Ends on Ctrl-C or
    SIGTERM, when every request that was accepted has its answer. Settings without a flag here are variables
    of the environment, SLUICE_…, or stand in sluice.toml.
    """
    with user_errors():
        from serving import main, settings

        loaded = settings.load(
            models_dir=models,
            model_server=model_server,
            http_host=http_host,
            http_port=http_port,
            grpc_host=grpc_host,
            grpc_port=grpc_port,
            keys_file=keys,
            rollout_store=rollouts,
            workers=workers,
        )
        _run(main.run_serve(loaded, _announcing(loaded)))


def gateway(
    replica: Annotated[
        list[str] | None,
        typer.Option(
            help="HOST:PORT or unix:PATH of a replica's gRPC API, or dns:HOST:PORT for all that a name has; "
            "repeatable."
        ),
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="Name of a model to serve; repeatable.")] = None,
    http_host: HttpHost = None,
    http_port: HttpPort = None,
    grpc_host: GrpcHost = None,
    grpc_port: GrpcPort = None,
    keys: Keys = None,
    rollouts: Rollouts = None,
    workers: Workers = None,
) -> None:
    """Run the gateway in front of TensorFlow Serving replicas that run elsewhere.

    Settings without a flag here are variables of the environment, SLUICE_…, or stand in sluice.toml.
    """
    with user_errors():
        from serving import main, settings

        loaded = settings.load(
            replicas=tuple(replica) if replica else None,
            models=tuple(model) if model else None,
            http_host=http_host,
            http_port=http_port,
            grpc_host=grpc_host,
            grpc_port=grpc_port,
            keys_file=keys,
            rollout_store=rollouts,
            workers=workers,
        )
        _run(main.run_gateway(loaded, _announcing(loaded)))


def model_server() -> None:
    """Run a model server that takes tensorflow_model_server's flags; `model-server --help` lists them."""
    raise AssertionError("`serving.cli.main` hands the flags on before they are parsed here")


def models(
    url: Url = "http://127.0.0.1:8080",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    api_key: ApiKey = None,
) -> None:
    """List the models and versions of a running gateway, with their states."""
    with user_errors():
        from rich.table import Table

        table = Table("model", "version", "state", "replicas", "error")
        with connection(url, api_key) as client, read_as_a_gateways(client):
            answer = ask(client, "GET", "/v1/models").json()
            for each in answer["models"]:
                for found in each["versions"]:
                    table.add_row(
                        each["name"],
                        str(found["version"]),
                        found["state"],
                        str(found["available_on"]),
                        printable(found["error"] or ""),
                    )
        if as_json:
            print(json.dumps(answer))
        else:
            console().print(table)


def demo(models: ModelsDir = None, model_server: ModelServer = None) -> None:
    """Serve on free ports, classify a sample image, print the answer, stop."""
    with user_errors():
        from serving import main, settings

        loaded = settings.load(models_dir=models, model_server=model_server, http_port=0, grpc_port=0)
        _run(main.run_serve(loaded, _post_sample))


async def _post_sample(running: Up) -> None:
    import asyncio

    import httpx

    path = "/v1/models/digits:classify"
    print(f"posting {SAMPLE.name} to {running.http_url}{path} …", flush=True)
    async with httpx.AsyncClient(base_url=running.http_url, timeout=60) as client:
        try:
            async with asyncio.timeout(_DEMO_TIMEOUT_S):
                await running.ready()
        except TimeoutError:
            raise SluiceError(
                f"no version of every model could be loaded within {_DEMO_TIMEOUT_S:.0f} s; "
                "the lines above have the reasons"
            ) from None
        answer = await client.post(
            path,
            content=SAMPLE.read_bytes(),
            headers={"content-type": "image/png"},
        )
    found = answer.json()
    if not answer.is_success:
        raise SluiceError(f"the gateway answered {answer.status_code}: {found['detail']}")
    best = found["results"][0]["classes"][0]
    print(
        f"{SAMPLE.name} is a {best['label']} (probability {best['score']:.4f}), "
        f"says {found['model']} version {found['version']}"
    )


def _announcing(settings: Settings) -> WhileUp:
    asks_for_a_key = settings.keys_file is not None or settings.jwks_file is not None
    return lambda running: _announce(running, asks_for_a_key=asks_for_a_key)


async def _announce(running: Up, *, asks_for_a_key: bool) -> None:
    """Say where to look, and when the models are there; then run until a signal comes."""
    import asyncio

    print(f"HTTP   {running.http_url}   (API: {running.http_url}/openapi.json)")
    print(f"gRPC   {running.grpc_address}   (sluice.v1.ImageClassification, with reflection)", flush=True)
    models = await running.ready()
    for name, versions in models.items():
        print(f"model  {name}, version {', '.join(map(str, versions))}")
    first = next(iter(models))
    key = '-H "Authorization: Bearer $SLUICE_API_KEY" ' if asks_for_a_key else ""
    print("\nTry it:")
    print(
        f"  curl --data-binary @{shlex.quote(str(_from_here(SAMPLE)))} -H 'Content-Type: image/png' {key}"
        f"{running.http_url}/v1/models/{first}:classify",
        flush=True,
    )
    await asyncio.Event().wait()


def _from_here(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _run(work: Any) -> None:
    import structlog

    from serving import main, settings
    from serving.logs import configure_logging

    configure_logging()
    for text in settings.misspelled():
        structlog.get_logger().warning(text)
    main.run(work)


def connection(url: str, api_key: str | None) -> httpx.Client:
    """A connection to a gateway; raises InvalidInput if the address is none, or the key."""
    import httpx

    from serving.gateway_url import authorization, checked

    return httpx.Client(base_url=checked(url), timeout=_TIMEOUT_S, headers=authorization(api_key))


def ask(client: httpx.Client, method: str, path: str) -> httpx.Response:
    """The gateway's answer.

    Raises:
        InvalidInput: nobody answers there, or a key is missing or wrong; the text says what to do.
        DeadlineExceeded: the answer takes too long.
        SluiceError: the gateway refuses.
    """
    import httpx

    from serving.gateway_url import for_command, key_refused, unanswered

    try:
        answer = client.request(method, path)
    except httpx.RequestError as error:
        raise for_command(unanswered(client.base_url, error, _TIMEOUT_S), START_ONE) from error
    if answer.is_success:
        return answer
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise InvalidInput(f"{client.base_url} refused: {key_refused('authorization' in client.headers)}")
    try:
        refused = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        refused = "not what a gateway of Sluice answers"
    raise SluiceError(f"{client.base_url} answered {answer.status_code}: {refused}")


@contextmanager
def read_as_a_gateways(client: httpx.Client) -> Iterator[None]:
    """What is read out of an answer in the block is a gateway's; raises SluiceError where it is not."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SluiceError(
            f"{client.base_url} answers, but not as a gateway of Sluice does; is it the right address?"
        ) from error


def printable(text: str) -> str:
    """Text that others wrote, such as a model's label: what would drive the terminal is escaped."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def console() -> Console:
    """A terminal for text that others wrote, such as a replica's error: nothing in it is markup."""
    from rich.console import Console

    return Console(markup=False, emoji=False)


@contextmanager
def user_errors() -> Iterator[None]:
    """Errors as one line on stderr: exit 2 for what the user can mend in the command, 1 for the rest.

    A reader of stdout that has seen enough (`| head`) is no error to tell of: BrokenPipeError goes on to
    typer, which ends with 1 and says nothing.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # what fails here would otherwise fail where nobody catches it
    except (SluiceError, OSError, ExceptionGroup) as error:
        first = innermost(error)
        if isinstance(first, BrokenPipeError):
            raise first from None
        if not isinstance(first, SluiceError | OSError):
            raise
        text = str(first)
        if isinstance(first, OSError) and first.strerror and first.filename:
            text = f"{first.filename}: {first.strerror}"
        print(f"error: {text}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(first, InvalidInput) else 1) from None
