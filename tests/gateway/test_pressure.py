"""What may be read and decoded while memory may run short: pure."""

from __future__ import annotations

import pytest

from serving.errors import Overloaded
from serving.pressure import ExpectedSizes, Pressure, Read

LARGEST = 1_000_000
MOST = 3 * LARGEST


class Memory:
    """What is left, as a test sets it; of what is left at first a fifth is kept, and a tenth is the last."""

    def __init__(self, left_bytes: int = 25_000_000) -> None:
        self.left_bytes = left_bytes
        self.refusals = 0
        self.pressure = Pressure(lambda: self.left_bytes, LARGEST, self._refused)
        self.given_up: list[str] = []

    def _refused(self) -> None:
        self.refusals += 1

    def begin(
        self, name: str, now: float, expected_bytes: int | None = None, *, stream: bool = False
    ) -> Read:
        read = Read(now, lambda _: self.given_up.append(name), expected_bytes, stream=stream)
        self.pressure.begin(read)
        return read


def let_in(memory: Memory, now: float, expected_bytes: int | None = None) -> int:
    """How many of those who come at once may be read."""
    count = 0
    while count < 1000 and memory.pressure.has_room(now, expected_bytes):
        memory.begin(f"{count}", now, expected_bytes)
        count += 1
    return count


def test_of_those_who_come_at_once_as_many_are_read_as_there_is_room_for() -> None:
    assert let_in(Memory(), 1.0) == 20_000_000 // MOST
    assert let_in(Memory(), 1.0, expected_bytes=500_000) == 20_000_000 // 1_500_000
    assert let_in(Memory(), 1.0, expected_bytes=10) == 25, "the smallest may as well bring 256 KiB"
    assert let_in(Memory(), 1.0, expected_bytes=10 * LARGEST) == 20_000_000 // MOST, "more it cannot bring"
    few = Memory(2_000_000)
    assert let_in(few, 1.0) == 1, "where there is no room for one, one is read at a time"


def test_one_that_has_come_gives_its_room_to_the_next() -> None:
    memory = Memory()
    read = memory.begin("it", 1.0)
    others = let_in(memory, 1.0)
    assert not memory.pressure.has_room(1.0)
    memory.pressure.end(read, 1000, 1.001)
    assert memory.pressure.has_room(1.001)
    assert others == 5


def test_slow_ones_do_not_keep_out_others_for_long() -> None:
    memory = Memory()
    assert let_in(memory, 1.0) == 6
    assert not memory.pressure.has_room(1.02)
    assert memory.pressure.has_room(1.03, 10), "what they were promised is no more than at first"
    assert let_in(memory, 1.1) == 3, "half of what the first six were promised is free"
    low = Memory(2_000_000)
    assert let_in(low, 1.0) == 1
    assert low.pressure.has_room(1.5)


def test_where_messages_turn_out_large_those_on_their_way_count_for_longer() -> None:
    for size_bytes, more in ((1000, True), (LARGEST, False)):
        memory = Memory()
        for _ in range(50):
            memory.pressure.end(memory.begin("done", 0.0), size_bytes, 0.5)
        let_in(memory, 1.0)
        assert memory.pressure.has_room(1.3) is more
        assert memory.pressure.has_room(5.0)


def test_how_large_messages_are_is_known_from_those_that_took_time() -> None:
    memory = Memory()
    for size_bytes, took_s in ((LARGEST, 0.5), (10, 0.001)):
        for _ in range(50):
            memory.pressure.end(memory.begin("done", 0.0), size_bytes, took_s)
    let_in(memory, 1.0)
    assert not memory.pressure.has_room(1.3), "at any moment more large ones are on their way"


def test_nobody_is_refused_by_what_was_free_a_moment_ago() -> None:
    memory = Memory(25_000_000)
    memory.left_bytes = 2_000_000
    with pytest.raises(Overloaded):
        memory.pressure.check(1.0)
    memory.left_bytes = 25_000_000
    memory.pressure.check(1.002)
    memory.left_bytes = 2_000_000
    assert not memory.pressure.has_room(2.0)
    memory.left_bytes = 25_000_000
    assert memory.pressure.has_room(2.002)


def test_messages_are_refused_while_what_is_kept_is_used() -> None:
    memory = Memory()
    memory.pressure.check(1.0)
    memory.left_bytes = 4_000_000
    with pytest.raises(Overloaded, match="memory is nearly used up") as refused:
        memory.pressure.check(2.0)
    assert refused.value.retry_after_s == 1.0
    assert not memory.pressure.has_room(2.0)
    assert memory.pressure.short.is_set()
    assert memory.refusals == 1
    memory.left_bytes = 25_000_000
    memory.pressure.check(2.01)


def test_what_stays_used_when_nothing_is_worked_on_keeps_out_nobody_for_ever() -> None:
    memory, busy = Memory(), True
    memory.pressure.busy = lambda: busy
    memory.left_bytes = 2_000_000
    for now in (1.0, 2.0):
        with pytest.raises(Overloaded):
            memory.pressure.check(now)
    busy = False
    for now in (3.0, 3.4):
        with pytest.raises(Overloaded):
            memory.pressure.check(now)
    memory.pressure.check(3.6)
    assert memory.pressure.has_room(3.6)
    read = memory.begin("it", 3.6)
    memory.pressure.give_up()
    assert memory.given_up == []
    memory.pressure.end(read, None, 3.7)
    memory.left_bytes = 300_000
    with pytest.raises(Overloaded):
        memory.pressure.check(4.0)
    memory.left_bytes = 25_000_000
    memory.pressure.check(4.1)
    memory.left_bytes = 4_000_000
    with pytest.raises(Overloaded):
        memory.pressure.check(4.2)


def test_it_is_all_there_is_only_where_it_stays_so_and_nothing_is_worked_on() -> None:
    memory, busy = Memory(), False
    memory.pressure.busy = lambda: busy

    def refused(*times: float) -> None:
        for now in times:
            with pytest.raises(Overloaded):
                memory.pressure.check(now)

    memory.left_bytes = 4_000_000
    refused(1.0)
    memory.left_bytes = 25_000_000
    memory.pressure.check(1.1)
    memory.left_bytes = 4_000_000
    refused(1.7)
    busy = True
    refused(1.9)
    busy = False
    refused(2.0, 2.3)
    with memory.pressure.working(LARGEST):
        refused(2.4, 3.0)
    memory.left_bytes = 0
    refused(4.0, 5.0, 6.0)


def test_a_part_is_kept_of_what_was_left_at_first_and_not_of_what_came_free_since() -> None:
    memory = Memory(25_000_000)
    memory.left_bytes = 100_000_000
    memory.pressure.check(1.0)
    memory.left_bytes = 19_000_000
    memory.pressure.check(2.0)


def test_a_large_message_that_is_alone_is_taken_however_little_is_left() -> None:
    memory = Memory()
    memory.left_bytes = 1_000_000
    with memory.pressure.working(LARGEST):
        assert memory.refusals == 0


def test_pixels_leave_less_for_what_is_made_of_messages() -> None:
    memory = Memory()
    memory.left_bytes = 10_000_000
    with memory.pressure.working(LARGEST):
        with memory.pressure.working(LARGEST):
            pass
        with (
            memory.pressure.decoding(6_000_000),
            pytest.raises(Overloaded),
            memory.pressure.working(LARGEST),
        ):
            raise AssertionError("there is no room for it")


def test_one_that_was_given_up_ends_as_any_other_and_leaves_its_room() -> None:
    memory = Memory()
    reads = [memory.begin(f"{number}", 1.0) for number in range(6)]
    assert not memory.pressure.has_room(1.0, 900_000)
    memory.left_bytes = 2_000_000
    memory.pressure.give_up()
    assert memory.given_up == ["0"]
    assert memory.pressure.has_room(1.0005, 900_000), "at once, and not as what is left is next looked at"
    memory.left_bytes = 25_000_000
    for read in reads:
        memory.pressure.end(read, None, 1.002)
    assert not memory.pressure.reading
    assert let_in(memory, 1.003) == 6


def test_what_is_made_of_messages_takes_room() -> None:
    memory = Memory()
    with memory.pressure.working(LARGEST), memory.pressure.working(LARGEST):
        assert let_in(memory, 1.0) == (20_000_000 - 4 * LARGEST) // MOST
        memory.left_bytes = 7_000_000
        with pytest.raises(Overloaded), memory.pressure.working(LARGEST):
            raise AssertionError("there is no room for it")
        with memory.pressure.working(1000):
            pass
    with memory.pressure.working(LARGEST):
        assert memory.refusals == 1


def test_the_longest_on_their_way_are_given_up_and_of_streams_the_latest() -> None:
    memory = Memory()
    memory.begin("old stream", 0.0, stream=True)
    for index in range(4):
        memory.begin(f"call {index}", 1.0 + index)
    memory.begin("young stream", 9.0, stream=True)
    memory.pressure.give_up()
    assert memory.given_up == []
    memory.left_bytes = 2_000_000
    while memory.pressure.reading:
        memory.pressure.give_up()
    assert memory.given_up == [*(f"call {index}" for index in range(4)), "young stream", "old stream"]
    assert memory.refusals == 6
    many = Memory()
    for index in range(12):
        many.begin(f"{index}", 1.0 + index)
    many.left_bytes = 2_000_000
    many.pressure.give_up()
    assert many.given_up == ["0", "1", "2"], "a quarter at a time: that may do"


def test_pixels_take_room_while_they_are_there() -> None:
    memory = Memory()
    with memory.pressure.decoding(20_000_000):
        with pytest.raises(Overloaded, match="not enough memory"), memory.pressure.decoding(5_000_000):
            raise AssertionError("there is no room for it")
        assert let_in(memory, 1.0) == 0
    with memory.pressure.decoding(22_000_000):
        pass


def test_a_connection_is_expected_to_bring_what_it_brought_until_that_is_long_ago() -> None:
    sizes = ExpectedSizes()
    assert sizes.of("a") is None
    sizes.came("a", 1_000_000)
    sizes.came("a", 10)
    assert 900_000 < (sizes.of("a") or 0) < 1_000_000
    for _ in range(2000):
        sizes.came("a", 10)
    assert (sizes.of("a") or 0) < 100
    for index in range(5000):
        sizes.came(f"{index}", 10)
    assert sizes.of("a") is None
    assert sizes.of("4999") == 10
    sizes.came("950", 10)
    for index in range(100):
        sizes.came(f"more {index}", 10)
    assert (sizes.of("951"), sizes.of("950")) == (None, 10), "it was not the longest ago any more"
