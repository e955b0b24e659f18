"""Counts that gateways make of their own traffic, added up over gateways. Pure.

Counts only grow while a process lives; those of versions that no rollout is about any more are forgotten.
They are flat, `kind/version[/more]` to number, so that they can be summed, subtracted, and kept in a file
without further structure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

Counts = dict[str, float]


def key(kind: str, version: int, *more: str) -> str:
    """The name of a count."""
    return "/".join((kind, str(version), *more))


def routed_key(arm: str, weight: float) -> str:
    """The name of the count of requests routed to an arm by their own ids, while it had this weight."""
    return f"routed/{arm}/{weight_name(weight)}"


def weight_name(weight: float) -> str:
    """A weight as part of a count's name."""
    return f"{weight:.6g}"


def of_versions(counts: Counts, versions: Collection[int]) -> Counts:
    """The counts of these versions, and those that are of none."""
    numbers = {str(version) for version in versions}

    def is_wanted(about: str) -> bool:
        return about in numbers or not about.isdecimal()

    return {name: number for name, number in counts.items() if is_wanted(_about(name))}


def _about(name: str) -> str:
    """What a count is about: a version, or an arm."""
    return name.partition("/")[2].partition("/")[0]


def grown(now: Mapping[str, Counts], before: Mapping[str, Counts]) -> Counts:
    """What all gateways counted since `before`, by gateway's id.

    A gateway whose counts fell because it was restarted contributes what it has counted since its start. One
    that has forgotten all of a version, but goes on counting, was not restarted. One that has vanished
    contributes nothing, and neither does one that is new here: it may have counted for a long time unseen,
    before this rollout.
    """
    total: Counts = {}
    for gateway, counts in now.items():
        old = before.get(gateway, counts)
        kept = {_about(name) for name in counts}
        restarted = any(
            counts.get(name, 0.0) < number for name, number in old.items() if _about(name) in kept
        )
        for name, number in counts.items():
            more = number - (0.0 if restarted else old.get(name, 0.0))
            if more:
                total[name] = total.get(name, 0.0) + more
    return total


def remembered(before: Mapping[str, Counts], now: Mapping[str, Counts]) -> dict[str, Counts]:
    """The last counts of every gateway, by its id, to be given to the next `grown`.

    One that is missing just once, since a scrape of it failed, must not come back as a new one.
    """
    return {**before, **now}
