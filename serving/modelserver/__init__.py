"""A local stand-in for `tensorflow_model_server`: the same flags, wire API and error texts, in Python.

The only part of `serving` that imports TensorFlow. It loads SavedModels as TensorFlow Serving does (a
session, the `serve` tag, the restore and init ops), so that what works here works there. The words
`the original` in this package stand for TensorFlow Serving's own `tensorflow_model_server`.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run a model server with `tensorflow_model_server`'s flags until SIGTERM; return the exit status."""
    from serving.modelserver.server import run

    return run(argv)


def usage() -> str:
    """The flags, one per line."""
    from serving.modelserver import flags

    return flags.usage()
