"""Which pages of a device are free, as runs of consecutive ones?

A run is one mapping and one system call, so the pool wants consecutive pages: `take` gives the
smallest run that fits, lowest first, and without one the largest runs. Runs never touch each other:
`give` merges. Pure, and must stay so: the pool's invariant rests on it.
"""

from bisect import bisect_left, bisect_right, insort

from .backend import PageRun


class FreeRuns:
    """Free pages as sorted, non-touching runs; each operation is a search and a short edit."""

    def __init__(self, total: int) -> None:
        self._firsts = [0]
        self._count_at = {0: total}
        self.count = total

    def covers(self, run: PageRun) -> bool:
        """Whether all pages of a run are free."""
        return self._holder_of(run) is not None

    def take_run(self, run: PageRun) -> None:
        """Take exactly these pages; the caller checked that they are free."""
        first = self._holder_of(run)
        assert first is not None
        count = self._remove(first)
        self.count -= run.count
        for at, end in ((first, run.first), (run.first + run.count, first + count)):
            if at < end:
                insort(self._firsts, at)
                self._count_at[at] = end - at

    def runs(self) -> tuple[PageRun, ...]:
        """All of them, ascending."""
        return tuple(PageRun(first, self._count_at[first]) for first in self._firsts)

    def take(self, pages: int) -> list[PageRun]:
        """The smallest run that fits, else the largest runs until it is enough."""
        self.count -= pages
        fitting = [run for run in self.runs() if run.count >= pages]
        if fitting:
            best = min(fitting, key=lambda run: (run.count, run.first))
            return [self._cut(best, pages)]
        taken: list[PageRun] = []
        for run in sorted(self.runs(), key=lambda run: (-run.count, run.first)):
            taken.append(self._cut(run, min(run.count, pages)))
            pages -= taken[-1].count
            if not pages:
                break
        return sorted(taken, key=lambda run: run.first)

    def give(self, run: PageRun) -> None:
        """Insert a run and merge it with the neighbours that it touches."""
        self.count += run.count
        first, end = run.first, run.first + run.count
        at = bisect_left(self._firsts, first)
        if at < len(self._firsts) and self._firsts[at] == end:
            end += self._remove(self._firsts[at])
        if at > 0 and self._firsts[at - 1] + self._count_at[self._firsts[at - 1]] == first:
            first = self._firsts[at - 1]
            self._remove(first)
        insort(self._firsts, first)
        self._count_at[first] = end - first

    def _holder_of(self, run: PageRun) -> int | None:
        at = bisect_right(self._firsts, run.first) - 1
        if at < 0:
            return None
        first = self._firsts[at]
        return first if run.first + run.count <= first + self._count_at[first] else None

    def _cut(self, run: PageRun, pages: int) -> PageRun:
        self._remove(run.first)
        if run.count > pages:
            insort(self._firsts, run.first + pages)
            self._count_at[run.first + pages] = run.count - pages
        return PageRun(run.first, pages)

    def _remove(self, first: int) -> int:
        del self._firsts[bisect_left(self._firsts, first)]
        return self._count_at.pop(first)
