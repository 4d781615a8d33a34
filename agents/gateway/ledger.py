"""Which tokens of a generation has the client been given, and is the next one the right one?

The ledger makes replay exact: a token below the expected index is a repeat and is dropped, the
expected one is taken, one above it is a gap and an error, because a token was lost. Pure; it never
waits and never talks to anybody.
"""

from dataclasses import dataclass, field

from ...core.errors import ProtocolError


@dataclass(slots=True)
class Ledger:
    """Tokens accepted so far, in order; `dropped` counts repeats."""

    max_tokens: int
    eos_ids: frozenset[int]
    accepted: list[int] = field(default_factory=list)
    dropped: int = 0

    def accept(self, index: int, token: int) -> bool:
        """True when the token is new; False for a repeat. Raises ProtocolError on a gap."""
        expected = len(self.accepted)
        if index < expected:
            if self.accepted[index] != token:
                raise ProtocolError(
                    f"token {index} was {self.accepted[index]} and is now {token}: "
                    "the replay differs from what was sent"
                )
            self.dropped += 1
            return False
        if index > expected:
            raise ProtocolError(f"token {index} came while {expected} was expected: one was lost")
        if self.finish_reason is not None:
            return False  # beyond the end that this side already knows: nothing to send
        self.accepted.append(token)
        return True

    @property
    def finish_reason(self) -> str | None:
        """Why no further token can come, when the tokens themselves say so: "stop" or "length"."""
        if self.accepted and self.accepted[-1] in self.eos_ids:
            return "stop"
        return "length" if len(self.accepted) >= self.max_tokens else None
