"""Errors become exit codes and lines for people."""

import io

import pytest

from moectl.cli.exit_codes import error_from_body, report
from moectl.core.errors import (
    ConflictError,
    DeadlineError,
    InvariantError,
    MoectlError,
    RefusedError,
    SpecError,
    UnplaceableError,
    UsageError,
)


@pytest.mark.parametrize(
    "error,code",
    [
        (MoectlError("x"), 1),
        (UsageError("x"), 2),
        (RefusedError("x"), 3),
        (SpecError([]), 3),
        (UnplaceableError("x"), 4),
        (DeadlineError("x"), 5),
        (InvariantError("x"), 70),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_error_has_its_exit_code(error: BaseException, code: int) -> None:
    assert report(error, io.StringIO()) == code


def test_an_error_says_what_and_what_next() -> None:
    out = io.StringIO()
    report(MoectlError("port 1 is taken", next_step="take another"), out)
    assert out.getvalue() == "error: port 1 is taken\nnext:  take another\n"


def test_an_unexpected_error_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        report(ZeroDivisionError("x"), io.StringIO())


@pytest.mark.parametrize(
    "kind,code,cls",
    [
        ("ConflictError", 3, ConflictError),
        ("UnplaceableError", 4, UnplaceableError),
        ("DeadlineError", 5, DeadlineError),
        ("SomethingNewer", 4, UnplaceableError),
        ("SomethingNewer", 3, RefusedError),
        ("SomethingNewer", None, MoectlError),
    ],
)
def test_the_apis_errors_mean_the_same_here(
    kind: str, code: int | None, cls: type[MoectlError]
) -> None:
    body = {"error": {"type": kind, "message": "no", "next_step": "wait", "exit_code": code}}
    error = error_from_body(409, body, "POST /v1/x")
    assert type(error) is cls
    assert (error.message, error.next_step) == ("no", "wait")


def test_an_answer_in_another_form_is_told_as_such() -> None:
    assert "502" in error_from_body(502, None, "GET /v1/fleet").message
    assert "502" in error_from_body(502, {"detail": "x"}, "GET /v1/fleet").message
