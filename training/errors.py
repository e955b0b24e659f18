"""What can go wrong in training and publishing, told to a user in one sentence.

TrainingError              shown as `error: ...`, never with a stack trace
├── BadInput               an argument or a file is not what it must be; exit code 2
└── PublishFailed          the model was not published, and nothing of it is left behind
    └── ProofFailed        what was written does not do what the Keras model does
"""

from __future__ import annotations


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
