"""Counts that gateways make of their own traffic, added up over gateways. Pure.

Counts only grow while a process lives, and each process has an id of its own. They are flat,
`kind/version[/more]` to number, so that they can be summed, subtracted, and kept in a file without a scheme
of their own.
"""

from __future__ import annotations

from collections.abc import Mapping

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


def grown(now: Mapping[str, Counts], before: Mapping[str, Counts]) -> Counts:
    """What all gateways counted since `before`, by process' id.

    A count that is lower than before was read earlier, as by the other one of two Prometheuses: it says
    nothing new. A process that has vanished contributes nothing, nor does one that is new here: it may have
    counted for long where nobody saw it, and before this rollout.
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
    """The last counts of every process, by its id, to be given to the next `grown`.

    One that cannot be seen for once, since a scrape of it failed, must not come back as a new one; nor must
    what was read earlier take the place of what was read later.
    """
    return {
        **before,
        **{process: _latest(before.get(process, {}), counts) for process, counts in now.items()},
    }


def _latest(before: Counts, now: Counts) -> Counts:
    return {**before, **{name: max(number, before.get(name, 0.0)) for name, number in now.items()}}
