"""The command `classify`: files, folders, patterns or standard input, with a running gateway."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from serving.commands.asking import START_ONE, ApiKey, Ca, Url, trusting
from serving.commands.terminal import printable, user_errors
from serving.errors import InvalidInput, SluiceError, Unauthenticated, Unavailable

if TYPE_CHECKING:  # imported when the command runs, so that --help stays fast
    from serving.client import AsyncClient
    from serving.prediction import Prediction

STDIN = "-"
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"))
# Of images that a gateway refuses.
OTHER_SUFFIXES = frozenset((".avif", ".heic", ".heif", ".jp2", ".jxl", ".pgm", ".ppm", ".tif", ".tiff"))
_NAMED_FILES = 5  # how many of those left out are named
_PATTERN = frozenset("*?[")


class Format(StrEnum):
    """How answers are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked of the gateway for every image."""

    model: str | None
    version: int | None
    label: str | None
    top_k: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one file: a prediction of one image, or why there is none.

    Attributes:
        name: the file's, as it was given or found.
        prediction: what the gateway says; None if it failed.
        error: why it failed.
        hopeless: whether all others would fail the same way, so that all there is left to do is say so.
    """

    name: str
    prediction: Prediction | None = None
    error: SluiceError | None = None
    hopeless: bool = False


class Printer(Protocol):
    """Prints answers as they come."""

    def __call__(self, answer: Answer) -> None:
        """Print one."""


def classify(
    paths: Annotated[
        list[str], typer.Argument(help="Image files, folders, quoted patterns; - for standard input.")
    ],
    url: Url = "http://127.0.0.1:8080",
    model: Annotated[str | None, typer.Option(help="Model.", show_default="the gateway's default")] = None,
    version: Annotated[int | None, typer.Option(help="Version.", show_default="the routed one")] = None,
    label: Annotated[str | None, typer.Option(help="Version label, instead of --version.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many classes per image.")] = 1,
    output: Annotated[Format, typer.Option("--format", help="How to print the answers.")] = Format.TABLE,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    api_key: ApiKey = None,
    ca: Ca = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=86_400, help="Seconds per image, retries included.")
    ] = 60,
) -> None:
    """Classify images with a running gateway. Exits with 1 if any of them failed."""
    with user_errors():
        import asyncio

        if (version is not None or label is not None) and model is None:
            raise InvalidInput("--version and --label need --model")
        if version is not None and label is not None:
            raise InvalidInput("--version and --label are two ways to name a version; pass one of them")
        names = list(find(paths))
        options = Options(model, version, label, top_k, timeout)
        # Here and not in a thread, which Ctrl-C could not end before the writer at the other end does.
        stdin = sys.stdin.buffer.read() if STDIN in names else b""
        printer = _printer(Format.JSON if as_json else output, names, top_k)
        failed = asyncio.run(_classify_all(names, stdin, url, api_key, trusting(ca), options, printer))
        raise typer.Exit(1 if failed else 0)


def find(paths: Sequence[str]) -> Iterator[str]:
    """The files that the arguments stand for, folders and patterns sorted.

    A name that is not a file's is passed on as it is: its failure is one of the answers.

    Raises:
        InvalidInput: a folder or a pattern without an image, or no name at all.
        OSError: a folder cannot be read.
    """
    for path in paths:
        if not path:  # pathlib takes it for the working folder
            raise InvalidInput("a file's name is empty; . stands for the working folder")
        place = Path(path)
        if path != STDIN and place.is_dir():
            found = _images_in(place)
        elif path != STDIN and not place.exists() and _PATTERN & set(path):
            anchor = Path(place.anchor) if place.anchor else Path()
            relative = str(place.relative_to(anchor)) if place.anchor else path
            found = [str(each) for each in sorted(_glob(anchor, relative, path)) if each.is_file()]
        else:
            found = [path]
        if not found:
            raise InvalidInput(f"{path} has no image file ({', '.join(sorted(IMAGE_SUFFIXES))})")
        yield from found


def _glob(anchor: Path, relative: str, whole: str) -> list[Path]:
    try:
        return list(anchor.glob(relative))
    except ValueError as error:
        raise InvalidInput(f"{whole} is not a pattern: {error}") from None


def _images_in(folder: Path) -> list[str]:
    """The images below a folder, without hidden ones; those of other kinds are named on stderr."""
    os.listdir(folder)  # noqa: PTH208 - raises if it is unreadable, which `rglob` treats as empty
    below = [path.relative_to(folder) for path in sorted(folder.rglob("*"))]
    seen = [path for path in below if not any(part.startswith(".") for part in path.parts)]
    other = [str(path) for path in seen if _is_file_of(OTHER_SUFFIXES, folder / path)]
    if other:
        named = ", ".join(map(printable, other[:_NAMED_FILES])) + (" …" if len(other) > _NAMED_FILES else "")
        images = "1 image" if len(other) == 1 else f"{len(other)} images"
        print(f"note: {images} of other kinds in {folder} left out: {named}", file=sys.stderr)
    return [str(folder / path) for path in seen if _is_file_of(IMAGE_SUFFIXES, folder / path)]


def _is_file_of(suffixes: Collection[str], path: Path) -> bool:
    return path.suffix.lower() in suffixes and path.is_file()


async def _classify_all(
    names: Sequence[str],
    stdin: bytes,
    url: str,
    api_key: str | None,
    verify: Any,
    options: Options,
    printer: Printer,
) -> int:
    """Classify and print all; returns how many failed.

    Raises:
        InvalidInput: none can be classified: nobody answers, or the key is missing or wrong.
    """
    from serving.client import AsyncClient
    from serving.rpc.streams import answered_in_order

    failed = 0
    async with AsyncClient(url, api_key=api_key, verify=verify) as client:
        with _progress(len(names)) as advance:

            async def answer(name: str) -> Answer:
                return await _classify_one(client, name, stdin, options, keyed=bool(api_key))

            answering = answered_in_order(_each(names), answer)
            async with aclosing(answering) as answers:
                async for each in answers:
                    if each.hopeless:
                        assert each.error is not None
                        raise each.error
                    failed += each.error is not None
                    printer(each)
                    sys.stdout.flush()
                    advance()
    return failed


async def _each(names: Sequence[str]) -> AsyncIterator[str]:
    for name in names:
        yield name


async def _classify_one(
    client: AsyncClient, name: str, stdin: bytes, options: Options, *, keyed: bool
) -> Answer:
    import asyncio

    import httpx

    from serving.gateway_url import for_command, key_refused

    try:
        data = stdin if name == STDIN else await asyncio.to_thread(Path(name).read_bytes)
        prediction = await client.classify(
            data,
            model=options.model,
            version=options.version,
            label=options.label,
            top_k=options.top_k,
            timeout_s=options.timeout_s,
        )
    except OSError as error:
        return Answer(name, error=InvalidInput(f"cannot be read: {error.strerror}"))
    except Unavailable as error:
        if isinstance(error.__cause__, httpx.TransportError):
            return Answer(name, error=for_command(error, START_ONE), hopeless=True)
        return Answer(name, error=error)
    except Unauthenticated:
        refused = InvalidInput(f"the gateway refused: {key_refused(keyed)}")
        return Answer(name, error=refused, hopeless=True)
    except SluiceError as error:
        return Answer(name, error=error)
    return Answer(name, prediction)


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A progress bar on stderr, if somebody is looking and there is something to wait for."""
    if total < 2 or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("classifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # rich would redirect what is printed to the bar, which may be on a terminal while stdout is a file.
    shared = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=shared) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)


def _printer(output: Format, names: Sequence[str], top_k: int) -> Printer:
    if output is Format.JSON:
        return _print_json
    return _csv_printer() if output is Format.CSV else _table_printer(names, top_k)


def _print_json(answer: Answer) -> None:
    """One object a line, as the HTTP API shows a result."""
    import dataclasses
    import json

    shown: dict[str, Any] = {"file": answer.name}
    if answer.prediction is None:
        assert answer.error is not None
        shown["error"] = {"type": answer.error.kind, "detail": answer.error.message}
    else:
        found, result = answer.prediction, answer.prediction.results[0]
        shown |= {"model": found.model, "version": found.version}
        shown["classes"] = [dataclasses.asdict(each) for each in result.classes]
        if result.prediction_id:
            shown["prediction_id"] = result.prediction_id
    print(json.dumps(shown, ensure_ascii=False))


def _csv_printer() -> Printer:
    """One line per class; for a file that failed, one line with the error."""
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("file", "model", "version", "rank", "label", "index", "score", "error"))

    def write(answer: Answer) -> None:
        found = answer.prediction
        if found is None:
            writer.writerow((answer.name, "", "", "", "", "", "", answer.error))
            return
        for rank, each in enumerate(found.results[0].classes, 1):
            writer.writerow(
                (answer.name, found.model, found.version, rank, each.label, each.index, each.score, "")
            )

    return write


def _table_printer(names: Sequence[str], top_k: int) -> Printer:
    """Columns that are known before the first answer, so that rows can be printed as they come."""
    width = min(max(len(printable(each)) for each in (*names, "file")), 60)
    print(f"{'file':<{width}}  {'label  score' if top_k == 1 else 'labels and scores'}")

    def write(answer: Answer) -> None:
        found, name = answer.prediction, printable(answer.name)
        if found is None:
            print(f"{name:<{width}}  error: {printable(str(answer.error))}")
            return
        classes = ",  ".join(
            f"{printable(each.label)}  {each.score:.4f}" for each in found.results[0].classes
        )
        print(f"{name:<{width}}  {classes}  ({found.model} version {found.version})")

    return write
