"""TensorFlow without Keras, which it imports for restoring Keras objects; a session never does that."""

from __future__ import annotations

import sys


def import_tensorflow_alone() -> None:
    """Import TensorFlow, but not Keras and what Keras imports if it is installed: scikit-learn, Matplotlib.

    Those are two fifths of the time that the import takes, and 100 MiB. Whatever imports Keras later gets
    it. Has no effect on a process that has imported either of the two already.
    """
    if {"tensorflow", "keras"} & sys.modules.keys():
        return
    # `import keras` fails if the module is None, as TensorFlow expects when Keras is not installed.
    sys.modules["keras"] = None  # type: ignore[assignment]
    try:
        import tensorflow  # noqa: F401
    finally:
        del sys.modules["keras"]
