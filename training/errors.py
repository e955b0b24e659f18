"""What can go wrong in training and publishing, told to a user in one sentence.

TrainingError              shown as `error: ...`, never with a stack trace
├── BadInput               an argument or a file is not what it must be; exit code 2
└── PublishFailed          the model was not published, and nothing of it is left behind
    └── ProofFailed        what was written does not do what the Keras model does
"""

from __future__ import annotations

import re

# What Keras and AutoGraph raise in place of a layer's own error, which is the new error's context.
_WRAPPING = re.compile(
    r"in user code:|Could not automatically infer the output shape|.* could not be deserialized properly"
    r"|Exception encountered when calling (.+?)\.\n"
)


class TrainingError(Exception):
    """Root of the tree; `str(error)` says what, where, and what would be right."""


class BadInput(TrainingError):
    """An argument, a label file, a data set or an archive that cannot be used."""


class PublishFailed(TrainingError):
    """No version was published; the folder is as it was."""


class ProofFailed(PublishFailed):
    """A check on the written SavedModel failed; `check` is its name."""

    def __init__(self, check: str, found: str) -> None:
        super().__init__(f"not published: check {check!r} failed: {found}")
        self.check = check


def told(error: BaseException) -> str:
    """An error from a model's code in one line: in which layer, of what type, and its text.

    As in `Scale.call(): KeyError: gain`. The layer is the one that Keras names, if it does.
    """
    where = ""
    while error.__context__ is not None and (found := _WRAPPING.match(_text(error))):
        where = f"{found[1]}: " if found[1] else where
        error = error.__context__
    lines = re.sub(r"\{\{.*?\}\} ", "", _text(error)).split("\n")  # TensorFlow's place in a graph
    reason = next((line.strip() for line in lines if line.strip()), "")
    return f"{where}{type(error).__name__}{': ' if reason else ''}{reason}"


def _text(error: BaseException) -> str:
    """An error's bare text: `str` of a KeyError puts it in quotes, TensorFlow's adds the graph's nodes."""
    is_quoted = type(error) is KeyError and len(error.args) == 1
    return str(error.args[0] if is_quoted else getattr(error, "message", error))
