"""The type that a model computes in; its weights stay float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import keras

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


@contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Layers made within compute in this type: float32, bfloat16 or float16."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(POLICIES[precision])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
