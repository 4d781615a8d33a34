"""What does a step need from its process group, whatever carries the bytes?

An `Exchange` is one epoch's group: every rank calls the same methods in the same order. Nothing
here or in its implementations knows about models, experts or requests.

Rules that every implementation keeps (one contract suite runs them all):
- A call returns what all peers gave to the same call, or raises ExchangeBrokenError; every wait has
  a deadline and sleeps (never spins).
- Both ends of a pair know the bound of what one sends the other (from the step's control words, or
  from an exchange before). Where it is 0 the part is empty and no message is sent.
- Tensors returned by `all_to_all` may lie in shared memory: they are valid until the next call.
- `abort` may be called from any thread, more than once: the waits of this rank end, and so do its
  peers' (a broken group must never hold a rank until its deadline).
- `close` gives everything back; it is called by whoever knows that all ranks have left the group.

Legend: W control words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ....core.errors import ExchangeBrokenError

#: Words of a control gather. Chosen: the step uses nine, the rest is room for later issues.
CONTROL_WORDS = 12

#: How long a rank waits for its peers in one call. Chosen: many times the longest step (a full
#: prefill chunk on eight ranks that share two cores takes about a second); a lost peer is told by
#: its agent long before.
DEADLINE_S = 20.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bytes that a part may have at most: `out_max[r]` to rank r, `in_max[r]` from it.

    out_max[r] here is in_max[this rank] at rank r; a transport may pad parts to it.
    """

    out_max: Sequence[int]
    in_max: Sequence[int]


class Exchange(Protocol):
    """One epoch's process group."""

    rank: int
    size: int

    def gather_control(
        self, mine: Sequence[int], deadline_s: float | None = None
    ) -> list[tuple[int, ...]]:
        """Give CONTROL_WORDS integers and get every rank's, in rank order.

        `deadline_s` replaces the group's own deadline for this call.
        """
        ...

    def all_to_all(self, parts: Sequence[torch.Tensor], bounds: Bounds) -> list[torch.Tensor]:
        """Give `parts[r]` (uint8, 1-D, contiguous) to rank r, and get one part from every rank.

        The own part is handed back as it is. Raises EngineError when a part is over its bound.
        """
        ...

    def doorbells(self) -> Sequence[int]:
        """Descriptors that become readable when a peer enters the next call (those there are).

        An idle rank sleeps on them; the next call clears them. They may ring for nothing.
        """
        ...

    def abort(self, reason: str) -> None:
        """End every wait of this group, here and at the peers; later calls fail at once."""
        ...

    def close(self) -> None:
        """Give back descriptors, mappings and sockets; idempotent."""
        ...


class SoloExchange:
    """The group of a single rank: nothing is exchanged."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self._broken = ""

    def gather_control(
        self, mine: Sequence[int], deadline_s: float | None = None
    ) -> list[tuple[int, ...]]:
        """See Exchange.gather_control."""
        self._check()
        return [checked_words(mine)]

    def all_to_all(self, parts: Sequence[torch.Tensor], bounds: Bounds) -> list[torch.Tensor]:
        """See Exchange.all_to_all."""
        self._check()
        return [parts[0]]

    def doorbells(self) -> Sequence[int]:
        """See Exchange.doorbells."""
        return ()

    def abort(self, reason: str) -> None:
        """See Exchange.abort."""
        self._broken = self._broken or reason

    def close(self) -> None:
        """See Exchange.close."""
        self.abort("closed")

    def _check(self) -> None:
        if self._broken:
            raise ExchangeBrokenError(f"the group of one rank was aborted: {self._broken}")


def checked_words(mine: Sequence[int]) -> tuple[int, ...]:
    """The words as a tuple; ValueError unless there are CONTROL_WORDS of them."""
    if len(mine) != CONTROL_WORDS:
        raise ValueError(f"{len(mine)} control words given, {CONTROL_WORDS} expected")
    return tuple(mine)
