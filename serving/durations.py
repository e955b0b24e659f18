"""The longest time limit that anybody may set."""

from __future__ import annotations

LONGEST_S = 31_536_000.0
"""A year. Far beyond it gRPC takes a deadline for one that has passed, and sockets refuse it."""
