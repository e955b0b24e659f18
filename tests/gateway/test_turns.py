"""The queue in which callers take turns."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from serving.turns import TurnQueue


def test_one_caller_is_served_in_order_and_several_in_turn() -> None:
    queue: TurnQueue[str] = TurnQueue()
    for item in ("a1", "a2", "a3", "b1", "c1", "c2"):
        queue.append(item[0], item)
    assert queue.first() == "a1"
    assert [queue.popleft() for _ in range(len(queue))] == ["a1", "b1", "c1", "a2", "c2", "a3"]
    assert not queue


@given(st.lists(st.sampled_from("abcd"), max_size=40), st.sampled_from("abcd"))
def test_nobody_waits_longer_than_was_foretold(callers: list[str], newcomer: str) -> None:
    queue: TurnQueue[tuple[str, int]] = TurnQueue()
    for index, caller in enumerate(callers):
        queue.append(caller, (caller, index))
    foretold = queue.ahead_of(newcomer)
    queue.append(newcomer, (newcomer, -1))
    assert len(queue) == len(callers) + 1
    left = [queue.popleft() for _ in range(len(queue))]
    assert left.index((newcomer, -1)) <= foretold
    for caller in "abcd":
        own = [index for who, index in left if who == caller and index >= 0]
        assert own == sorted(own)
    assert Counter(who for who, _ in left) == Counter([*callers, newcomer])


def test_what_is_not_wanted_any_more_is_ahead_of_nobody() -> None:
    queue: TurnQueue[int] = TurnQueue()
    for caller, item in (("a", 1), ("b", 2), ("a", 3), ("c", 4), ("b", 6), ("a", 8)):
        queue.append(caller, item)
    queue.keep(lambda item: item % 2 == 0)
    assert len(queue) == 4
    assert queue.ahead_of("d") == 3
    assert [queue.popleft() for _ in range(4)] == [8, 2, 4, 6]
    queue.append("a", 1)
    queue.keep(lambda _: False)
    assert not queue
