"""The commands as a user runs them: processes, their output, their exit codes."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from tests.support.ports import free_port
from tests.training.conftest import Published
from tests.training.foreign import classifier
from training import cli

pytestmark = pytest.mark.timeout(900)  # whoever comes first trains the models that are shared

APP = """
import typer
from training import cli
app = typer.Typer()
for name in ("train", "publish", "recipes", "evaluate", "compare", "inspect"):
    app.command(name)(getattr(cli, name))
app()
"""
COMMANDS = ("train", "publish", "recipes", "evaluate", "compare", "inspect")


def start(*arguments: str | Path, file_kib: int | None = None) -> subprocess.Popen[str]:
    limit = ["bash", "-c", f'ulimit -f {file_kib} && exec "$@"', "-"] if file_kib else []
    return subprocess.Popen(
        [*limit, sys.executable, "-c", APP, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        # a user may have set Keras up for other programs
        env=os.environ | {"COLUMNS": "200", "KERAS_BACKEND": "jax"},
    )


def run(*arguments: str | Path, file_kib: int | None = None) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    process = start(*arguments, file_kib=file_kib)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_help_needs_no_tensorflow() -> None:
    script = APP.replace("app()\n", "")
    for command in COMMANDS:
        script += f"try: app(['{command}', '--help'])\nexcept SystemExit: pass\n"
    script += "import sys; assert not {'tensorflow', 'keras', 'numpy', 'sklearn'} & set(sys.modules)\n"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for words in ("Train a recipe and publish", "Publish a model of your own", "McNemar", "--resume"):
        assert words in done.stdout


def test_recipes_lists_them_all() -> None:
    from training.config import PRESETS

    code, out, err = run("recipes")
    assert (code, err) == (0, "")
    assert all(f" {name} " in out for name in PRESETS)


def test_train_publishes_and_says_where(tmp_path: Path) -> None:
    from tensorflow.compat.v1.train import summary_iterator as read_events

    options = ("--epochs", "2", "--examples", "300", "--out", tmp_path, "--tensorboard", tmp_path / "logs")
    code, out, err = run("train", "sequential", *options)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("sequential epoch 1/2 loss ")
    assert lines[1].startswith("sequential epoch 2/2 loss ")
    assert lines[2].startswith("held-out accuracy 0.")
    assert lines[-2:] == [f"published {tmp_path / 'digits' / '1'}", f"next: sluice serve --models {tmp_path}"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["digits", "logs"]
    (events,) = (tmp_path / "logs" / "sequential").glob("events.out.tfevents.*")
    written = {(event.step, value.tag) for event in read_events(str(events)) for value in event.summary.value}
    names = ("loss", "accuracy", "val_loss", "val_accuracy")
    assert written == {(step, name) for step in (0, 1) for name in names}


def test_errors_are_one_line() -> None:
    message = "error: there is no recipe 'resnt'; did you mean 'resnet'?\n"
    assert run("train", "resnt") == (2, "", message)


def test_a_full_disk_below_stdout_is_told() -> None:
    for arguments in (["recipes"], ["recipes", "--help"], ["--version"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "serving", *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                cwd=Path(__file__).parents[2],
            )
        assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_what_is_wrong_with_the_arguments_is_told_without_tensorflow(tmp_path: Path) -> None:
    """Which takes ten seconds to load."""
    (tmp_path / "taken").write_text("no folder of a model")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").touch()
    wrong = {
        "train resnet --data mnist=none.npz": "none.npz: no such file or folder, in --data mnist=none.npz",
        "train resnet --data folder": "folder needs a path",
        "train resnet --data cats": "there is no data set 'cats'; there are: digits",
        "train huber --data digits": "huber is made for --data line, not digits",
        "train sequential --data line": "sequential is made for images, not line",
        "train simple-dense --data diabetes": "simple-dense is made for --data line, or images, not diabetes",
        "train siamese --depth resnet8": "--depth is for resnet and vgg, not for siamese",
        "train vgg --depth resnet8": "vgg has no depth 'resnet8'; there are: vgg4, vgg7, vgg16",
        "train wide-deep --examples 10": "--examples is for recipes of images, not for wide-deep on diabetes",
        "train resnet --name ../digits": "'../digits' is not a valid name for a model: letters",
        "train resnet --precision int8": "there is no precision 'int8'; there are: float32",
        "train resnet --augment wild": "there is no augmentation 'wild'; there are: none, shift, shift-flip",
        "train resnet --strategy tpu": "there is no strategy 'tpu'; there are: none, mirrored, multiworker",
        "train resnet --learning-rate 0": "the learning rate is 0.0; it must be a number above 0",
        "train resnet --out README.md": "--out README.md: README.md is not a folder",
        f"train resnet --out {tmp_path} --name taken": f"--out {tmp_path}/taken: {tmp_path}/taken is not a",
        "publish none.keras": "none.keras: no such file or folder",
        "publish README.md": "README.md: neither a .keras file nor a SavedModel folder",
        f"publish {tmp_path}": f"{tmp_path}: no saved_model.pb in it; there is one in {tmp_path}/1",
        "publish none.keras --pixel-scale 1/255": "none.keras: no such file or folder",
        "publish none.keras --pixel-scale 1/x": "--pixel-scale 1/x: it is neither a number, such as 0.5,",
        "publish none.keras --pixel-scale 1/0": "--pixel-scale 1/0: it is neither a number",
        f"publish {tmp_path}/1 --name a/b": "'a/b' is not a valid name for a model",
        f"publish {tmp_path}/1 --labels none.txt": "--labels none.txt: No such file or directory; pass a",
        "evaluate nowhere": "nowhere: no saved_model.pb in it, nor in a version folder below it",
        f"evaluate {tmp_path} --data cats": "there is no data set 'cats'",
        f"evaluate {tmp_path} --png tests": "--png tests: it is a folder",
        f"evaluate {tmp_path} --png none/c.png": "--png none/c.png: there is no folder none",
        f"compare {tmp_path} nowhere": "nowhere: no saved_model.pb in it",
        f"compare {tmp_path} {tmp_path} --data folder=none": "none: no such file or folder",
        "inspect nowhere": "nowhere: no saved_model.pb in it",
    }
    script = APP.replace("app()\n", "import sys\n")
    for line in wrong:
        script += f"try: app({line.split()!r})\nexcept SystemExit as end: assert end.code == 2, {line!r}\n"
    script += "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for message, line in zip(wrong.values(), done.stderr.splitlines(), strict=True):
        assert line.startswith(f"error: {message}")


def test_labels_may_come_through_a_pipe(tmp_path: Path) -> None:
    """As of `--labels <(cut -d, -f2 classes.csv)`."""
    classifier().save(tmp_path / "flowers.keras")
    command = [sys.executable, "-m", "serving", "publish", str(tmp_path / "flowers.keras")]
    done = subprocess.run(
        [*command, "--labels", "/dev/stdin", "--out", str(tmp_path / "models")],
        input="rose\ntulip\ndaisy\n",
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stderr) == (0, "")
    card = json.loads((tmp_path / "models" / "flowers" / "1" / "assets.extra" / "card.json").read_text())
    assert card["labels"] == ["rose", "tulip", "daisy"]


def test_evaluate_compare_and_inspect(published: Published, digits: Path, tmp_path: Path) -> None:
    poor = published("sequential")
    card = json.loads((digits / "assets.extra" / "card.json").read_text())
    code, out, err = run("evaluate", digits, "--json", "--png", tmp_path / "c.png")
    assert (code, err) == (0, "")
    assert json.loads(out)["held_out_accuracy"] == card["metrics"]["held_out_accuracy"]
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")

    code, out, err = run("compare", digits.parent, poor, "--data", "digits")
    assert (code, err) == (0, "")
    assert "they differ at the 5 % level" in out
    assert "359 examples" in out

    code, out, err = run("inspect", digits.parent)
    assert (code, err) == (0, "")
    assert "serving_bytes" in out
    assert "images uint8 [N, 8, 8, 1]" in out
    assert "antialiased bilinear" in out


def test_names_with_brackets_are_printed_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "colours"
    for label in ("[red]", "blue"):
        (images / label).mkdir(parents=True)
        for number in range(5):
            Image.new("L", (4, 4), 50 * number).save(images / label / f"{number}.png")
    Image.new("L", (4, 4)).save(images / "[bold].png")
    data = ("--data", f"folder={images}")
    code, out, err = run("train", "sequential", *data, "--epochs", "1", "--out", tmp_path / "models")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "note: 1 images in no class's folder left out: [bold].png"
    monkeypatch.setenv("COLUMNS", "200")
    for show in (cli.inspect, partial(cli.evaluate, data=data[1])):  # here, where TensorFlow is loaded
        show(tmp_path / "models" / "colours")
        out, err = capsys.readouterr()
        assert err == ""
        assert "[red]" in out


def test_images_that_no_memory_holds_are_one_line(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(2):
            Image.new("L", (4, 4)).save(tmp_path / label / f"{number}.png")
    options = ("--data", f"folder={tmp_path}", "--image-size", str(10**7), "--out", tmp_path / "models")
    code, out, err = run("train", "sequential", *options)
    assert (code, out) == (1, "")
    assert err.startswith("error: there is no memory for it: Unable to allocate")
    assert len(err.splitlines()) == 1


def test_a_full_disk_publishes_nothing(digits: Path, tmp_path: Path) -> None:
    archive = digits / "assets.extra" / "model.keras"
    code, out, err = run("publish", archive, "--out", tmp_path / "m", "--name", "x", file_kib=100)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: nothing was published in {tmp_path / 'm' / 'x'}")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "m").exists()


def test_a_full_disk_ends_training_and_leaves_no_half_of_a_checkpoint(tmp_path: Path) -> None:
    code, _, err = run("train", "sequential", "--examples", "300", "--out", tmp_path, file_kib=20)
    assert code == 1
    file = tmp_path / ".training" / "digits-sequential-sequential.npz"
    assert err == f"error: {file} cannot be written: File too large\n"
    assert not file.parent.exists()


def test_a_worker_that_waits_for_the_others_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that comes back alone does, for ever where the others are done."""
    workers = [f"127.0.0.1:{port}" for port in (free_port(), free_port())]
    task = {"type": "worker", "index": 0}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": workers}, "task": task}))
    process = start("train", "simple-dense", "--strategy", "multiworker", "--out", tmp_path)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "note: waiting for all the workers that TF_CONFIG names\n"
    finally:
        process.kill()
        process.communicate(timeout=60)


def test_killed_in_the_middle_and_resumed(tmp_path: Path) -> None:
    options = ("train", "residual", "--examples", "300", "--epochs", "6", "--out", tmp_path)
    process = start(*options)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    process.kill()
    process.communicate(timeout=60)
    assert [line.split()[2] for line in lines] == ["1/6", "2/6"]
    assert [entry.name for entry in tmp_path.iterdir()] == [".training"]

    code, out, err = run(*options, "--resume")
    assert (code, err) == (0, "")
    resumed = [line.split()[2] for line in out.splitlines() if " epoch " in line]
    assert resumed == [f"{epoch}/6" for epoch in range(7 - len(resumed), 7)]
    assert 1 <= len(resumed) <= 4  # epochs that ended before the kill are not trained again
    card = json.loads((tmp_path / "digits" / "1" / "assets.extra" / "card.json").read_text())
    assert card["training"]["epochs"] == 6
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits"]
