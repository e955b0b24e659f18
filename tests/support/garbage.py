"""What only the garbage collector frees."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import serving

_PACKAGE = str(Path(serving.__file__).parent)


@contextmanager
def left_behind() -> Iterator[list[Any]]:
    """What the block leaves that nothing refers to but itself; in the list once the block has ended."""
    found: list[Any] = []
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def our_frames(found: list[Any]) -> list[FrameType]:
    """The frames of Sluice's own functions among it; what they worked on is held with them."""
    return [
        each for each in found if isinstance(each, FrameType) and each.f_code.co_filename.startswith(_PACKAGE)
    ]
