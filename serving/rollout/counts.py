"""Counts that gateways make of their own traffic, added up over gateways. Pure.

Counts only grow while a process lives, and each process has an id of its own; those of versions that no
rollout is about any more are forgotten. They are flat, `kind/version[/more]` to number, so that they can be
summed, subtracted, and kept in a file without further structure.
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
    """The counts of these versions, and the counts that belong to no version."""
    numbers = {str(version) for version in versions}

    def is_wanted(about: str) -> bool:
        return about in numbers or not about.isdecimal()

    return {name: number for name, number in counts.items() if is_wanted(_about(name))}


def _about(name: str) -> str:
    """Which version or arm a count belongs to."""
    return name.partition("/")[2].partition("/")[0]


def grown(now: Mapping[str, Counts], before: Mapping[str, Counts]) -> Counts:
    """What all gateways counted since `before`. Both map a process's id to its counts.

    A count that is lower than before is an older reading, for example by the other of two Prometheuses, and
    says nothing new. A process that has vanished contributes nothing, and neither does one that appears for
    the first time: it may have counted unseen for a long time before this rollout.
    """
    total: Counts = {}
    for process, counts in now.items():
        old = before.get(process, counts)
        for name, number in counts.items():
            more = number - old.get(name, 0.0)
            if more > 0.0:
                total[name] = total.get(name, 0.0) + more
    return total


def remembered(before: Mapping[str, Counts], now: Mapping[str, Counts]) -> dict[str, Counts]:
    """The latest counts of every process, by its id, as `before` of the next `grown`.

    A process that is missing only once, because a scrape failed, must not come back as a new one; nor may an
    older reading replace a newer one.
    """
    return {
        **before,
        **{process: _latest(before.get(process, {}), counts) for process, counts in now.items()},
    }


def _latest(before: Counts, now: Counts) -> Counts:
    return {**before, **{name: max(number, before.get(name, 0.0)) for name, number in now.items()}}
