"""What did the people who were served feel? Gaps between tokens, from arrival times. Pure
arithmetic.

All times are seconds since the epoch on this machine, the same clock that transitions are stamped
with. A gap is the time between two tokens of one answer; the wait for the first token is none.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """A span of time, both ends included."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Trace:
    """One request as its reader saw it; `arrivals` has one time for each piece of text."""

    conversation: int
    turn: int
    sent_at: float
    arrivals: tuple[float, ...]
    ended_at: float
    text: str
    replays: int = 0
    moves: int = 0  # changes of worker at which its KV moved along
    error: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether it ended as it should."""
        return not self.error


@dataclass(frozen=True, slots=True)
class Gap:
    """The time between two neighbouring tokens."""

    start: float
    end: float

    @property
    def milliseconds(self) -> float:
        """Its length."""
        return 1000.0 * (self.end - self.start)


def gaps_of(trace: Trace) -> Iterator[Gap]:
    """Every gap of one request, in order."""
    for start, end in zip(trace.arrivals, trace.arrivals[1:], strict=False):
        yield Gap(start, end)


def touches(gap: Gap, window: Window) -> bool:
    """Whether any part of a gap lies in a window."""
    return gap.end >= window.start and gap.start <= window.end


def lies_in(gap: Gap, window: Window) -> bool:
    """Whether a whole gap lies in a window."""
    return gap.start >= window.start and gap.end <= window.end


def longest_gap_ms(traces: Iterable[Trace], window: Window, *, replayed: bool) -> float:
    """The longest gap that touches a window, of requests that were replayed or that stayed.

    0.0 when there is none.
    """
    lengths = (
        gap.milliseconds
        for trace in traces
        if (trace.replays > 0) == replayed
        for gap in gaps_of(trace)
        if touches(gap, window)
    )
    return max(lengths, default=0.0)


def steady_p99_ms(traces: Iterable[Trace], window: Window) -> float:
    """The 99th percentile of the gaps that lie wholly in a quiet window; 0.0 without any."""
    return pooled_p99_ms(traces, [window])


def pooled_p99_ms(traces: Iterable[Trace], windows: Sequence[Window]) -> float:
    """The 99th percentile of the gaps that lie wholly in one of several quiet windows."""
    gaps = [gap for trace in traces for gap in gaps_of(trace)]
    lengths = [g.milliseconds for g in gaps if any(lies_in(g, window) for window in windows)]
    return percentile(lengths, 0.99)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: the smallest value that `share` of all do not exceed.

    Raises:  ValueError when `share` is not in (0, 1].
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"a share is in (0, 1], not {share}")
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1]


def tokens_per_second(traces: Iterable[Trace], window: Window) -> float:
    """Pieces of text that arrived in a window, per second."""
    return pooled_tokens_per_second(traces, [window])


def pooled_tokens_per_second(traces: Iterable[Trace], windows: Sequence[Window]) -> float:
    """Pieces of text that arrived in several windows, over their seconds together."""
    arrivals = [arrival for trace in traces for arrival in trace.arrivals]
    count = sum(1 for window in windows for a in arrivals if window.start <= a <= window.end)
    seconds = sum(window.seconds for window in windows)
    return count / seconds if seconds > 0 else 0.0


def mismatches(traces: Iterable[Trace], reference: dict[tuple[int, int], str]) -> int:
    """Finished requests whose text is another than in the run that never scaled."""
    return sum(1 for t in traces if t.is_ok and reference.get((t.conversation, t.turn)) != t.text)


def failures_in(traces: Iterable[Trace], window: Window) -> int:
    """Failed requests that were alive at some time of a window."""
    return sum(
        1
        for trace in traces
        if not trace.is_ok and trace.ended_at >= window.start and trace.sent_at <= window.end
    )
