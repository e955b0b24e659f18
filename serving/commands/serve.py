"""The commands that run something: `serve`, `gateway`, `model-server`, and `demo`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.commands.terminal import user_errors
from serving.errors import SluiceError

if TYPE_CHECKING:  # imported when a command runs, so that --help stays fast
    from serving.main import Up, WhileUp
    from serving.settings import Settings

# TensorFlow takes seconds to load, on a busy machine tens of them.
_DEMO_TIMEOUT_S = 120.0

SAMPLE = Path(__file__).parents[1] / "samples" / "seven.png"
_OF_SAMPLE = "digits"  # the model that can classify it

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
    typer.Option("--keys", help="File of API keys (see `sluice keys`).", show_default="no key is required"),
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

    Versions that appear in the folder are loaded, and versions that vanish are unloaded. Ends on Ctrl-C or
    SIGTERM, once every request that was accepted has its answer. Settings without a flag here are environment
    variables, SLUICE_…, or lines in sluice.toml.
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

    Settings without a flag here are environment variables, SLUICE_…, or lines in sluice.toml.
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


def demo(models: ModelsDir = None, model_server: ModelServer = None) -> None:
    """Serve on free ports, classify a sample image, print the answer, stop."""
    with user_errors():
        from serving import main, settings

        loaded = settings.load(models_dir=models, model_server=model_server, http_port=0, grpc_port=0)
        _run(main.run_serve(loaded, _post_sample))


async def _post_sample(running: Up) -> None:
    import asyncio

    import httpx

    path = f"/v1/models/{_OF_SAMPLE}:classify"
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
    return lambda running: announce(running, asks_for_a_key=asks_for_a_key)


async def announce(running: Up, *, asks_for_a_key: bool) -> None:
    """Print the addresses, and the models once they are loaded; then run until a signal comes."""
    import asyncio

    _say(
        f"HTTP   {running.http_url}   (API: {running.http_url}/openapi.json)",
        f"gRPC   {running.grpc_address}   (sluice.v1.ImageClassification, with reflection)",
    )
    models = await running.ready()
    tried = _OF_SAMPLE if _OF_SAMPLE in models else next(iter(models))
    key = '-H "Authorization: Bearer $SLUICE_API_KEY" ' if asks_for_a_key else ""
    _say(
        *(f"model  {name}, version {', '.join(map(str, versions))}" for name, versions in models.items()),
        "\nTry it:",
        f"  curl --data-binary @{shlex.quote(str(_from_here(SAMPLE)))} -H 'Content-Type: image/png' {key}"
        f"{running.http_url}/v1/models/{tried}:classify",
    )
    await asyncio.Event().wait()


def _say(*lines: str) -> None:
    """Print lines, if possible: a full disk, or a reader that has left, does not end a gateway."""
    from serving.telemetry.logs import STDOUT

    print(*lines, sep="\n", file=STDOUT, flush=True)


def _from_here(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _run(work: Any) -> None:
    import structlog

    from serving import main, settings
    from serving.telemetry.logs import configure_logging

    configure_logging()
    for text in settings.misspelled():
        structlog.get_logger().warning(text)
    main.run(work)
