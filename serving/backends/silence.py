"""Which replicas have been silent for so long that the log should say so, once each time."""

from __future__ import annotations

# A model server that starts needs seconds to load TensorFlow; until then its silence is not worth a line.
TELL_AFTER_S = 20.0


class Silence:
    """Notes which replicas answer; says when the silence of one is to be logged."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._told: set[str] = set()

    def to_tell(self, address: str, now: float) -> bool:
        """It did not answer at `now` (monotonic seconds); whether to log that now."""
        since = self._since.setdefault(address, now)
        if now - since < TELL_AFTER_S or address in self._told:
            return False
        self._told.add(address)
        return True

    def ended(self, address: str) -> bool:
        """It answered, or has left; whether its silence was logged."""
        self._since.pop(address, None)
        told = address in self._told
        self._told.discard(address)
        return told
