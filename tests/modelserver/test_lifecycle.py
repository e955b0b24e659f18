"""What to load and unload now, of what is wanted and what is there: a plain decision."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import protos
from serving.modelserver.lifecycle import Load, State, Unload, VersionState, decide
from tests.modelserver.managed import AVAILABLE, END, LOADING, NEW, PATHS, UNLOADING, wanted


@pytest.mark.parametrize(
    ("want", "known", "failed", "actions"),
    [
        ([1], {}, [], [Load(1, PATHS[1])]),
        ([1, 2], {}, [], [Load(2, PATHS[2]), Load(1, PATHS[1])]),
        ([2], {1: AVAILABLE}, [], [Load(2, PATHS[2])]),
        ([2], {1: AVAILABLE, 2: LOADING}, [], []),
        ([2], {1: AVAILABLE, 2: AVAILABLE}, [], [Unload(1)]),
        ([2], {1: AVAILABLE, 2: END}, [2], []),
        ([3], {1: AVAILABLE, 2: AVAILABLE}, [], [Unload(1), Load(3, PATHS[3])]),
        ([], {1: AVAILABLE, 2: LOADING}, [], [Unload(1)]),
        ([1], {1: END}, [], [Load(1, PATHS[1])]),
        ([1], {1: UNLOADING}, [], []),
        ([1], {1: NEW}, [], []),
        ([1], {1: AVAILABLE}, [], []),
    ],
)
def test_decide(
    want: list[int], known: dict[int, VersionState], failed: list[int], actions: list[Load | Unload]
) -> None:
    assert decide(wanted(*want), known, set(failed)) == actions


@given(
    want=st.sets(st.integers(1, 5)),
    known=st.dictionaries(st.integers(1, 5), st.sampled_from([LOADING, AVAILABLE, UNLOADING, END])),
)
def test_the_last_available_version_never_leaves_for_one_that_is_not_there(
    want: set[int], known: dict[int, VersionState]
) -> None:
    actions = decide(wanted(*want), known)
    unloads = {action.version for action in actions if isinstance(action, Unload)}
    available = {version for version, at in known.items() if at.state is State.AVAILABLE}
    assert unloads <= available - want
    if want and available:
        assert available - unloads


def test_the_states_are_those_of_the_messages() -> None:
    named = {number: name for number, name in protos.MODEL_VERSION_STATES.items() if name != "UNKNOWN"}
    assert {state.value: state.name for state in State} == named
