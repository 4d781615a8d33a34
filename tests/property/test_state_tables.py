"""The state tables are complete: every state is reachable and can end; no other move is made."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moectl.core.errors import InvariantError
from moectl.core.plan import Phase
from moectl.core.transitions import (
    PHASE_MOVES,
    TERMINAL_PHASES,
    WORKER_MOVES,
    WorkerState,
    checked_move,
)

TABLES: list[tuple[Any, Mapping[Any, frozenset[Any]], StrEnum]] = [
    (Phase, PHASE_MOVES, Phase.PREPARE),
    (WorkerState, WORKER_MOVES, WorkerState.STARTING),
]


def reachable(table: Mapping[Any, frozenset[Any]], start: Any) -> set[Any]:
    seen, waiting = {start}, [start]
    while waiting:
        for state in table[waiting.pop()] - seen:
            seen.add(state)
            waiting.append(state)
    return seen


@pytest.mark.parametrize(("kind", "table", "start"), TABLES)
def test_every_state_is_in_the_table_and_reachable_from_the_start(
    kind: Any, table: Mapping[Any, frozenset[Any]], start: Any
) -> None:
    assert set(table) == set(kind) == reachable(table, start)


@pytest.mark.parametrize(("kind", "table", "start"), TABLES)
def test_every_state_can_come_to_an_end(
    kind: Any, table: Mapping[Any, frozenset[Any]], start: Any
) -> None:
    ends = {state for state in kind if not table[state]}
    assert ends
    assert [state for state in kind if not ends & reachable(table, state)] == []


def test_after_commit_there_is_no_way_back() -> None:
    assert reachable(PHASE_MOVES, Phase.COMMIT) == {Phase.COMMIT, Phase.RETIRE, Phase.DONE}
    assert {Phase.DONE, Phase.FORFEITED} == TERMINAL_PHASES


def test_a_dead_worker_never_returns() -> None:
    assert reachable(WORKER_MOVES, WorkerState.LOST) == {WorkerState.LOST}


@given(st.sampled_from(list(WorkerState)), st.sampled_from(list(WorkerState)))
def test_a_move_is_made_exactly_when_the_table_has_it(old: WorkerState, new: WorkerState) -> None:
    if new == old or new in WORKER_MOVES[old]:
        assert checked_move(WORKER_MOVES, old, new) is new
    else:
        with pytest.raises(InvariantError, match=f"{old} -> {new}"):
            checked_move(WORKER_MOVES, old, new)
