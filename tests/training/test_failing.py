"""What somebody's own layers raise as their model is published: told in a line, and nothing is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import keras
import pytest
import typer

from tests.training import failing
from training import cli
from training.errors import BadInput, PublishFailed
from training.foreign import publish_file


def saved(layer: keras.layers.Layer, folder: Path) -> Path:
    """A file of a model in which the layer is one of a model within the model."""
    inside = keras.Sequential([keras.Input((2,)), layer])
    keras.Sequential([keras.Input((2,)), inside, keras.layers.Dense(1)]).save(folder / "m.keras")
    return folder / "m.keras"


def raising(error: Exception) -> Any:
    """A method that raises."""

    def method(*_: Any, **__: Any) -> NoReturn:
        raise error

    return method


FAILURES: dict[type[keras.layers.Layer], str] = {
    failing.Asks: "cannot be run on examples: Asks.call(): KeyError: gain",
    failing.Peeks: (
        "cannot be made a graph, as which it is served: Peeks.call(): AttributeError: 'SymbolicTensor'"
        " object has no attribute 'numpy'"
    ),
    failing.Reads: (
        "cannot be run on examples: Reads.call(): FileNotFoundError: [Errno 2] No such file or directory:"
        " '/no/such/table.csv'"
    ),
    failing.Runs: "cannot be run on examples: Runs.call(): StopIteration",
    failing.Refuses: "cannot be run on examples: Refuses.call(): NotCalibrated: ('camera', 3)",
}


@pytest.mark.parametrize("layer", FAILURES)
def test_what_a_layer_raises_is_told_with_the_layer(layer: type[keras.layers.Layer], tmp_path: Path) -> None:
    file = saved(layer(), tmp_path)
    with pytest.raises(BadInput) as caught:
        publish_file(file, tmp_path / "models")
    assert str(caught.value) == f"{file} {FAILURES[layer]}"
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "error", [KeyError("gain"), RuntimeError("gain\nand more of it"), ImportError("gain")]
)
def test_what_a_layer_raises_as_its_model_is_loaded(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(failing.Multiplies(), tmp_path)
    monkeypatch.setattr(failing.Multiplies, "call", raising(error))
    with pytest.raises(BadInput) as caught:
        publish_file(file, tmp_path / "models")
    assert str(caught.value) == f"{file} cannot be loaded: Multiplies.call(): {type(error).__name__}: gain"


def test_what_a_layer_raises_as_its_model_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, model = saved(failing.Multiplies(), tmp_path), tmp_path / "models" / "m"
    monkeypatch.setattr(failing.Multiplies, "get_config", raising(LookupError("no config today")))
    with pytest.raises(PublishFailed) as caught:
        publish_file(file, tmp_path / "models")
    assert str(caught.value) == f"nothing was published in {model}: LookupError: no config today"
    assert not model.parent.exists()


def test_the_command_tells_it_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(failing.Peeks(), tmp_path)
    with pytest.raises(typer.Exit) as ended:
        cli.publish(file, tmp_path / "models")
    assert ended.value.exit_code == 2
    assert capsys.readouterr() == ("", f"error: {file} {FAILURES[failing.Peeks]}\n")
