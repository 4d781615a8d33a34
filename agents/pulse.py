"""Is a worker that says nothing still at work? Counted looks, and the kernel's word.

A worker answers questions on a thread of its own, whatever its engine does; so one that answers
nothing for several looks in a row is stopped (SIGSTOP, a debugger) or stuck. Its peers wait for it
in every step, so it is ended: that makes it an ordinary loss, which is healed. Looks are counted,
not seconds, so that an agent that was itself held up accuses nobody.
"""

from dataclasses import dataclass

from ..core.paths import ProcessId, is_alive, is_stopped

STOPPED_LOOKS = 5  # a process that the kernel calls stopped, about a second a look
SILENT_LOOKS = 30  # one that runs and does not answer: a machine may be that busy


@dataclass(slots=True)
class Pulse:
    """Looks in a row that a worker left unanswered."""

    missed: int = 0

    def heard(self) -> None:
        """It answered."""
        self.missed = 0

    def missed_one(self) -> None:
        """It did not."""
        self.missed += 1

    def verdict(self, process: ProcessId) -> str:
        """Why the worker has to be ended, or nothing."""
        if self.missed >= SILENT_LOOKS:
            return f"it answered nothing for {self.missed} looks"
        if self.missed >= STOPPED_LOOKS and is_alive(process) and is_stopped(process):
            return f"it is stopped and answered nothing for {self.missed} looks"
        return ""
