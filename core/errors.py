"""The one tree of errors, and the exit code that each branch means to a person.

    MoectlError                     exit 1   something failed that may work later
      UsageError                    exit 2   the command line is wrong
      RefusedError                  exit 3   understood, and refused: nothing was changed
        SpecError                            a spec is wrong; carries every mistake at once
        ConflictError                        another operation or a newer revision is in the way
        AuthError                            unknown token, or a role that may not do this
        NotFoundError                        nothing of that name is declared or known
      UnplaceableError              exit 4   no placement satisfies the request; carries the reasons
      DeadlineError                 exit 5   a wait reached its deadline
      StoreError                    exit 1   etcd: see the classes below for what to do
        StoreUnavailableError                retry later; nothing is known to have happened
          StoreNoLeaderError                 etcd has lost its majority: certainly nothing happened
        StoreQuotaError                      etcd is full and takes no write until it has room
        StoreAmbiguousError                  the write may have happened: read back, never re-send
        CompactedError                       the revision asked for is gone: list again
        LeaseLostError                       step down: what the lease fenced is no longer ours
      MemoryPoolError               exit 1   pages, windows and the HBM manager
        PoolExhaustedError                   needed, free and holders are fields
        MappingError                         wrong alignment, double map, map after free
        ProtocolError                        a peer sent something malformed
      CheckpointError               exit 3   a file of weights is missing, truncated or does not fit
      EngineError                   exit 1   the engine could not take a step
        ExchangeBrokenError                  a peer of the process group is gone
        WorkerError                          a worker failed; its report is in the message
    InvariantError (AssertionError) exit 70  our bug; never caught below `main`

Every message says what, where, how much and what to do next. An expected "no" inside the pure rooms
is a value with reasons (`plan.Infeasible`); it becomes an error only where a person is told.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class MoectlError(Exception):
    """Base of every error that moectl raises on purpose; `next_step` says what a person can do."""

    exit_code = 1

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.message}\n  next: {self.next_step}" if self.next_step else self.message


class UsageError(MoectlError):
    """The command line is wrong."""

    exit_code = 2


class RefusedError(MoectlError):
    """Understood and refused; nothing was changed."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake in a spec: where it is, what is wrong, and how to mend it."""

    file: str
    line: int  # 1-based; 0 when the mistake belongs to no line
    path: str  # dotted path inside the document, such as "spec.parallelism.experts"
    reason: str
    fix: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.path}: {self.reason}; fix: {self.fix}"


class SpecError(RefusedError):
    """A spec is wrong. Carries every mistake found, not just the first."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        count = len(self.mistakes)
        head = f"{count} mistake{'s' if count != 1 else ''} in the spec"
        super().__init__("\n".join([head, *(f"  {mistake}" for mistake in self.mistakes)]))


class ConflictError(RefusedError):
    """Another operation, or a revision newer than the caller's, is in the way."""


class AuthError(RefusedError):
    """No token, an unknown token, or a role that may not do this."""


class NotFoundError(RefusedError):
    """Nothing of that name is declared or known; the API answers 404."""


class UnplaceableError(MoectlError):
    """No placement satisfies the request; `reasons` say which limit binds and by how much."""

    exit_code = 4

    def __init__(self, message: str, *, reasons: Sequence[str] = (), next_step: str = "") -> None:
        self.reasons = tuple(reasons)
        text = "\n".join([message, *(f"  {reason}" for reason in self.reasons)])
        super().__init__(text, next_step=next_step)


class DeadlineError(MoectlError):
    """A wait reached its deadline."""

    exit_code = 5


class StoreError(MoectlError):
    """The store could not do what was asked."""


class StoreUnavailableError(StoreError):
    """No endpoint answered in time; a read can be retried, nothing was written."""


class StoreNoLeaderError(StoreUnavailableError):
    """etcd has no leader, or refused for load: the request certainly did not happen."""


class StoreQuotaError(StoreError):
    """etcd's database has reached its quota: reads go on, writes are refused until it has room."""


class StoreAmbiguousError(StoreError):
    """A write was sent and no answer came: read back before deciding, never send it again."""


class CompactedError(StoreError):
    """The revision asked for has been compacted away; `compact_revision` is the oldest kept."""

    def __init__(self, message: str, compact_revision: int) -> None:
        super().__init__(message, next_step="list the prefix again and watch from there")
        self.compact_revision = compact_revision


class LeaseLostError(StoreError):
    """The lease expired or was revoked: what it fenced is no longer ours."""


class MemoryPoolError(MoectlError):
    """Pages, windows or the HBM manager refused."""


class PoolExhaustedError(MemoryPoolError):
    """A reservation is larger than what is free."""

    def __init__(
        self, device: str, needed_pages: int, free_pages: int, holders: dict[str, int]
    ) -> None:
        self.device = device
        self.needed_pages = needed_pages
        self.free_pages = free_pages
        self.holders = dict(holders)
        held = ", ".join(f"{name} {pages}" for name, pages in sorted(holders.items())) or "nobody"
        super().__init__(
            f"device {device}: {needed_pages} pages needed, {free_pages} free; held by: {held}",
            next_step="lower kvPerDevice, raise the device's hbm, or spread experts wider",
        )


class MappingError(MemoryPoolError):
    """Wrong alignment, double map, unmap of nothing, map after free."""


class ProtocolError(MemoryPoolError):
    """A peer on a socket sent something malformed, too large, or of another version."""


class CheckpointError(RefusedError):
    """Weights are missing, truncated, or of another dtype or shape than the model's config says."""


class EngineError(MoectlError):
    """The engine could not take a step."""


class ExchangeBrokenError(EngineError):
    """A peer of the process group is gone or missed its deadline."""


class WorkerError(EngineError):
    """A worker failed while preparing or serving; its own report is in the message."""


class InvariantError(AssertionError):
    """A law that must hold does not: our bug."""
