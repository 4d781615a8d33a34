"""The tree of errors and the exit codes that scripts rely on."""

import inspect

import pytest

from moectl.core import errors
from moectl.core.errors import MoectlError

CODES = {
    "MoectlError": 1,
    "UsageError": 2,
    "RefusedError": 3,
    "SpecError": 3,
    "ConflictError": 3,
    "AuthError": 3,
    "NotFoundError": 3,
    "UnplaceableError": 4,
    "DeadlineError": 5,
    "StoreError": 1,
    "StoreUnavailableError": 1,
    "StoreNoLeaderError": 1,
    "StoreQuotaError": 1,
    "StoreAmbiguousError": 1,
    "CompactedError": 1,
    "LeaseLostError": 1,
    "MemoryPoolError": 1,
    "PoolExhaustedError": 1,
    "MappingError": 1,
    "ProtocolError": 1,
    "CheckpointError": 3,
    "EngineError": 1,
    "ExchangeBrokenError": 1,
    "WorkerError": 1,
}


def classes() -> dict[str, type[MoectlError]]:
    found = inspect.getmembers(errors, inspect.isclass)
    return {name: kind for name, kind in found if issubclass(kind, MoectlError)}


def test_every_error_has_the_exit_code_that_people_were_told() -> None:
    assert {name: kind.exit_code for name, kind in classes().items()} == CODES


@pytest.mark.parametrize("name", sorted(CODES))
def test_the_drawing_of_the_tree_has_every_error(name: str) -> None:
    assert name in (errors.__doc__ or "")


def test_a_broken_invariant_is_not_one_of_them() -> None:
    assert not issubclass(errors.InvariantError, MoectlError)


def test_an_error_tells_what_to_do_next() -> None:
    assert str(MoectlError("no answer", next_step="start it")) == "no answer\n  next: start it"
    assert str(MoectlError("no answer")) == "no answer"


def test_a_full_pool_names_its_holders_in_order() -> None:
    error = errors.PoolExhaustedError("n1/d0", 9, 4, {"chat/kv": 3, "chat/experts": 2})
    assert "9 pages needed, 4 free; held by: chat/experts 2, chat/kv 3" in str(error)
    assert "nobody" in str(errors.PoolExhaustedError("n1/d0", 1, 0, {}))


def test_an_unplaceable_request_lists_its_reasons() -> None:
    error = errors.UnplaceableError("width 9", reasons=["4 devices", "1 is draining"])
    assert str(error).splitlines() == ["width 9", "  4 devices", "  1 is draining"]


def test_a_compaction_says_where_to_go_on() -> None:
    error = errors.CompactedError("revision 3 is gone", 7)
    assert error.compact_revision == 7
    assert "list the prefix again" in str(error)
