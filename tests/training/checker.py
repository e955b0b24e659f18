"""One checker for every registered layer, model, loss and metric; after Keras's `run_layer_test`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from training.precision import computing_in

Shape = tuple[int, ...]


def check_layer(
    make: Callable[[], Any],
    inputs: Any,
    output_shape: Any,
    weights: int,
    by_hand: tuple[Any, Any] | None,
    folder: Path,
) -> None:
    """Shape, count of weights, a training step, save and load, half precision, one value by hand.

    Args:
        make: builds the layer or model afresh.
        inputs: an array, or a structure of arrays, with a first dimension.
        output_shape: of the answer to `inputs`; a dictionary for several outputs.
        weights: how many numbers the layer holds once built.
        by_hand: (inputs, outputs) of a case that was computed by hand; the layer is fresh, or has all its
            weights at one where it has any.
        folder: to save in.
    """
    keras.utils.set_random_seed(0)  # else a small layer with a ReLU may begin with all of it dead
    layer = make()
    assert keras.saving.get_registered_name(type(layer)).startswith("sluice>")
    outputs = layer(inputs)
    assert _shapes(outputs) == output_shape
    assert layer.count_params() == weights
    _check_config(layer, make, inputs)
    _check_saved(layer, inputs, outputs, folder)
    _check_half_precision(make, inputs, output_shape)
    if layer.trainable_weights:
        _check_training(layer, inputs)
    if by_hand is not None:
        _check_by_hand(make, *by_hand)


def _shapes(outputs: Any) -> Any:
    if isinstance(outputs, dict):
        return {name: tuple(output.shape) for name, output in outputs.items()}
    return tuple(outputs.shape)


def _check_config(layer: Any, make: Callable[[], Any], inputs: Any) -> None:
    """A layer made anew from its config is the same layer with other weights."""
    config = layer.get_config()
    again = type(layer).from_config(config)
    assert again.get_config() == config
    again(inputs)
    assert [weight.shape for weight in again.weights] == [weight.shape for weight in layer.weights]
    if not isinstance(layer, keras.Model):
        structure = keras.tree.map_structure(lambda array: (None, *array.shape[1:]), inputs)
        shape = layer.compute_output_shape(structure if isinstance(inputs, list) else inputs.shape)
        assert tuple(shape)[1:] == tuple(layer(inputs).shape)[1:]


def _check_saved(layer: Any, inputs: Any, outputs: Any, folder: Path) -> None:
    """Saved and loaded without `custom_objects` it answers the same."""
    model = layer if isinstance(layer, keras.Model) else _as_model(layer, inputs)
    expected = outputs if isinstance(layer, keras.Model) else model(inputs)
    path = folder / "saved.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    keras.tree.map_structure(
        lambda left, right: np.testing.assert_allclose(left, right, atol=1e-6), loaded(inputs), expected
    )


def _as_model(layer: Any, inputs: Any) -> keras.Model:
    tensors = keras.tree.map_structure(
        lambda array: keras.Input(array.shape[1:], dtype=str(array.dtype)), inputs
    )
    return keras.Model(tensors, layer(tensors))


def _check_half_precision(make: Callable[[], Any], inputs: Any, output_shape: Any) -> None:
    """Under mixed precision the weights stay float32, and so do answers that a loss or a client sees."""
    with computing_in("bfloat16"):
        layer = make()
    outputs = layer(inputs)
    assert _shapes(outputs) == output_shape
    assert {weight.dtype for weight in layer.weights} <= {"float32"}
    inner = {inner.compute_dtype for inner in layer._flatten_layers()}
    assert "bfloat16" in inner
    kinds = {keras.backend.standardize_dtype(output.dtype) for output in keras.tree.flatten(outputs)}
    assert kinds == ({"float32"} if isinstance(layer, keras.Model) else {"bfloat16"})


def _check_training(layer: Any, inputs: Any) -> None:
    """A step changes every trainable weight."""
    model = layer if isinstance(layer, keras.Model) else _as_model(layer, inputs)
    before = [weight.numpy() for weight in model.trainable_weights]
    random = np.random.default_rng(1)
    targets = keras.tree.map_structure(
        lambda output: random.random(output.shape, np.float32) + 0.1, model(inputs)
    )
    model.compile("adam", "mean_squared_error", jit_compile=False)
    model.fit(inputs, targets, epochs=1, verbose=0)
    for old, weight in zip(before, model.trainable_weights, strict=True):
        assert np.abs(old - weight.numpy()).max() > 0, weight.path


def _check_by_hand(make: Callable[[], Any], inputs: Any, expected: Any) -> None:
    layer = make()
    layer(inputs)
    layer.set_weights([np.ones_like(weight) for weight in layer.get_weights()])
    np.testing.assert_allclose(layer(inputs), expected, atol=1e-5)
