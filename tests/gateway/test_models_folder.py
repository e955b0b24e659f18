"""The folder whose models `sluice serve` follows, through what happens to folders."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from serving import models_folder
from serving.errors import InvalidInput
from serving.main import Up, new_metrics, run_one, run_serve
from serving.processes.upstream import ConfigFile, Upstream
from serving.settings import Settings
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.http import PATH, PNG, grey_png

Deny = Callable[[Path], None]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    (folder / "digits" / "1").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "README").touch()
    return folder


@pytest.fixture
def deny(monkeypatch: pytest.MonkeyPatch) -> Deny:
    """Makes a folder unreadable, for root too, whom its permissions do not bind."""
    iterdir = Path.iterdir
    denied: set[Path] = set()

    def checked(folder: Path) -> Iterator[Path]:
        if folder in denied:
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", checked)
    return denied.add


def test_a_folder_that_cannot_be_read_is_no_new_model_and_the_others_are_found(
    models: Path, deny: Deny
) -> None:
    (models / "private" / "1").mkdir(parents=True)
    assert models_folder.find_models(models) == ["digits", "private"]
    deny(models / "private")
    assert models_folder.find_models(models) == ["digits"]
    assert models_folder.find_models(models, served=["private"]) == ["digits", "private"]


def test_a_folder_of_models_that_cannot_be_read_is_named(models: Path, deny: Deny) -> None:
    deny(models)
    with pytest.raises(InvalidInput, match=f"the folder {models} cannot be read: Permission denied"):
        models_folder.find_models(models)


@pytest.mark.parametrize(
    ("given", "what"), [("digits", "the model digits"), ("digits/1", "a version of the model digits")]
)
async def test_a_model_itself_is_no_folder_of_models_and_that_is_named(
    given: str, what: str, models: Path
) -> None:
    """TensorFlow Serving's `--model_base_path` is the model's own folder."""
    (models / "digits" / "1" / "saved_model.pb").touch()

    async def never(_up: Up) -> None:
        raise AssertionError("there is nothing to serve")

    with pytest.raises(InvalidInput) as refused:
        await run_serve(Settings(models_dir=models / given), never)
    assert refused.value.message == (
        f"{models / given} is {what}, and no folder of models; pass the one that digits is in: {models}"
    )


async def test_models_are_served_on_while_their_folder_is_away_and_followed_when_it_is_back(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, looks, away = models_folder.find_models, 0, tmp_path / "away"

    def counted(models_dir: Path, served: Collection[str] = ()) -> list[str]:
        nonlocal looks
        looks += 1
        return find(models_dir, served)

    async def looked(times: int) -> None:
        due = looks + times
        await until(lambda: looks >= due)

    async def while_up(up: Up) -> None:
        await up.ready()
        shutil.move(models, away)
        await looked(5)
        async with httpx.AsyncClient(base_url=up.http_url) as client:
            answer = await client.post(PATH, content=grey_png(200), headers=PNG)
            assert answer.status_code == 200
            (away / "numbers" / "1").mkdir(parents=True)
            shutil.move(away, models)
            await until(lambda: set(fake.versions) == {"digits", "numbers"})
            await looked(5)
            shutil.move(models, away)
            await looked(5)

    monkeypatch.setattr(models_folder, "find_models", counted)
    settings = Settings(http_port=0, grpc_port=0, status_interval_s=0.01, models_dir=models)
    async with running(FakeReplica()) as fake:
        config = ConfigFile(tmp_path / "models.config", models)
        upstream = Upstream((fake.address,), ("digits",), models, config)
        with capture_logs() as lines:
            await run_one(settings, upstream, new_metrics(), while_up)
    told = [line["error"] for line in lines if line["event"].startswith("cannot follow the folder")]
    assert len(told) == 2, "once each time that it went"
    assert f"there is no folder {models}" in told[0]


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (
            "flowers/saved_model.pb",
            (
                "{0}/flowers is a SavedModel in no version's folder: move it to {0}/flowers/1, or publish it:"
                " sluice publish {0}/flowers --out {0}"
            ),
        ),
        (
            "flowers.keras",
            "{0}/flowers.keras is not published: sluice publish {0}/flowers.keras --out {0}",
        ),
        (
            "flowers/best.keras",
            "{0}/flowers/best.keras is not published: sluice publish {0}/flowers/best.keras --out {0}",
        ),
    ],
)
async def test_a_model_that_lies_there_unpublished_is_told(
    place: str, text: str, models: Path, tmp_path: Path
) -> None:
    """At the start, where there is nothing else, and in the log, once, when it comes later."""
    expected = text.format(models)

    async def while_up(up: Up) -> None:
        await up.ready()
        (models / place).parent.mkdir(exist_ok=True)
        (models / place).touch()
        await until(lambda: any(line["event"] == expected for line in lines))
        (models / "numbers" / "1").mkdir(parents=True)
        await until(lambda: set(fake.versions) == {"digits", "numbers"})

    settings = Settings(http_port=0, grpc_port=0, status_interval_s=0.01, models_dir=models)
    with capture_logs() as lines:
        async with running(FakeReplica()) as fake:
            config = ConfigFile(tmp_path / "models.config", models)
            upstream = Upstream((fake.address,), ("digits",), models, config)
            await run_one(settings, upstream, new_metrics(), while_up)
    assert [line["event"] for line in lines].count(expected) == 1
    for name in ("digits", "numbers"):
        shutil.rmtree(models / name)
    with pytest.raises(InvalidInput) as refused:
        await run_serve(settings, while_up)
    assert refused.value.message == f"{models} holds no model; {expected}"


def test_a_folder_that_cannot_be_read_is_told_and_hides_no_other(models: Path, deny: Deny) -> None:
    """As what another user has trained: it would be missing without a word."""
    for name in ("private", "lost+found", ".cache"):
        (models / name / "1").mkdir(parents=True)
        deny(models / name)
    (models / "roses.keras").touch()
    assert list(models_folder.unserved(models, ["digits"])) == [
        f"{models}/private cannot be read, and is not served: Permission denied",
        f"{models}/roses.keras is not published: sluice publish {models}/roses.keras --out {models}",
    ]


async def test_a_model_without_a_version_to_start_with_is_named(models: Path, tmp_path: Path) -> None:
    settings = Settings(
        models=("digits", "typo"), models_dir=models, rollout_store=tmp_path / "store", model_server="true"
    )

    async def never(_up: Up) -> None:
        raise AssertionError("it has started")

    with pytest.raises(InvalidInput, match=f"{models / 'typo'} holds no version of a model to start with"):
        await run_serve(settings, never)


async def test_a_config_that_cannot_be_written_keeps_new_models_waiting_and_ends_nothing(
    models: Path, tmp_path: Path
) -> None:
    place = tmp_path / "config"
    place.mkdir()
    config = ConfigFile(place / "models.config", models)
    blocked = place.with_name("aside")

    async def while_up(up: Up) -> None:
        await up.ready()
        place.rename(blocked)  # nothing can be written there, as on a full disk
        (models / "numbers" / "1").mkdir(parents=True)
        await until(lambda: any(line["event"].startswith("cannot follow the folder") for line in lines))
        async with httpx.AsyncClient(base_url=up.http_url) as client:
            answer = await client.post(PATH, content=grey_png(200), headers=PNG)
            assert answer.status_code == 200
        assert set(fake.versions) == {"digits"}
        blocked.rename(place)
        await until(lambda: set(fake.versions) == {"digits", "numbers"})

    settings = Settings(http_port=0, grpc_port=0, status_interval_s=0.01, models_dir=models)
    with capture_logs() as lines:
        async with running(FakeReplica()) as fake:
            upstream = Upstream((fake.address,), ("digits",), models, config)
            await run_one(settings, upstream, new_metrics(), while_up)
    told = [line["error"] for line in lines if line["event"].startswith("cannot follow the folder")]
    assert told == [f"the model server's config {config.path} cannot be written: No such file or directory"]
