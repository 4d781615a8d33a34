"""One run of `moectl tune`: search, run-off, pairs, verdict, patch.

Everything that is measured goes through one live engine in this process. What the search finds lies
in the study's folder as it is found; Ctrl-C ends the search and keeps it.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ...core.errors import RefusedError
from ...core.paths import write_private
from ..progress import Progress
from . import objective, patch, study, workload
from .measure import MARKS, LiveEngine, Measured, Track
from .objective import Limits, Pair
from .recalibrate import Bench, recalibrate
from .space import Settings, Space
from .study import Attempt, Tried, TuneStudy
from .workload import Ask

#: Settings that go into the run-off: the best of many noisy figures is rarely the best setting,
#: but it is nearly always among the first few.
FINALISTS, RUNOFF_ROUNDS = 3, 3
#: Requests of the unmeasured first run: caches and pages are touched, modules imported.
WARM_REQUESTS = 8


@dataclass(frozen=True, slots=True)
class Subject:
    """What is tuned: a Model document, its canonical spec and its checkpoint's folder."""

    model: str
    raw: Mapping[str, Any]
    spec: Mapping[str, Any]
    folder: Path


@dataclass(frozen=True, slots=True)
class Plan:
    """How it is tuned."""

    space: Space
    asks: tuple[Ask, ...]
    limits: Limits
    trials: int
    rounds: int
    pairs: int
    seed: int
    budget_s: float
    home: Path  # the study's folder
    patch: Path


class _GivenUp(Exception):
    """A run that went so much worse than others that it was ended."""


class Session:
    """The live engine, the study and what is known so far."""

    def __init__(self, subject: Subject, plan: Plan, engine: LiveEngine, progress: Progress):
        self._subject, self._plan = subject, plan
        self._engine, self._progress = engine, progress
        self._study = TuneStudy(plan.home, plan.space, plan.seed)
        self.resumed = self._study.resumed
        self.is_out_of_time = False

    # ---- search ----------------------------------------------------------------------------------

    def search(self) -> None:
        """Measure until there are as many trials as were asked for, or the time is over."""
        plan, until = self._plan, time.monotonic() + self._plan.budget_s
        self._warm_up()
        while (count := len(self._study.tried())) < plan.trials:
            if time.monotonic() >= until:
                self.is_out_of_time = True
                break
            asked = self._study.ask()
            if asked is None:  # every legal combination was measured
                break
            attempt, settings = asked
            self._progress.start("search", f"{count + 1}/{plan.trials}: {words(settings)}")
            self._try(attempt, settings)
            best = ranked(self._study.tried(), plan.limits)
            if best:
                self._progress.start("search", f"{count + 1}/{plan.trials}; best {told(best[0])}")
        tried = self._study.tried()
        self._progress.end("search", "ok", f"{len(tried)} trials")

    def _warm_up(self) -> None:
        plan = self._plan
        self._progress.start("warm up")
        try:
            asks = plan.asks[:WARM_REQUESTS]
            self._engine.run(self._subject.spec, plan.space.present, asks)
        except RefusedError as error:
            raise RefusedError(
                f"the present settings cannot serve this workload: {error.message}",
                next_step=error.next_step or "give another workload, or mend the spec first",
            ) from error
        self._progress.end("warm up", "ok")

    def _try(self, attempt: Attempt, settings: Settings) -> None:
        runs: list[Measured] = []
        try:
            for turn in range(self._plan.rounds):
                runs.append(self._round(attempt, settings, turn))
        except _GivenUp:
            attempt.end("pruned", "others went better at the same mark")
            return
        except RefusedError as error:
            attempt.end("refused", error.message)
            return
        best = min(runs, key=lambda run: run.seconds)  # other work only ever makes one slower
        attempt.complete(best, self._plan.limits.excess_of(best))

    def _round(self, attempt: Attempt, settings: Settings, turn: int) -> Measured:
        mark = turn * MARKS

        def on_mark(track: Track, clock_s: float) -> None:
            nonlocal mark
            mark += 1
            score = objective.partial_score(track, clock_s, self._plan.limits)
            if attempt.give_up(mark, score):
                raise _GivenUp

        return self._measure(settings, on_mark)

    def _measure(self, settings: Settings, on_mark: Any = None) -> Measured:
        return self._engine.run(self._subject.spec, settings, self._plan.asks, on_mark)

    # ---- what comes of it ------------------------------------------------------------------------

    def tried(self) -> list[Tried]:
        """Every finished trial."""
        return self._study.tried()

    def winner(self) -> Settings | None:
        """The best of the finalists, measured again in turns; None when nothing was better."""
        plan = self._plan
        others = [t for t in ranked(self.tried(), plan.limits) if t.settings != plan.space.present]
        finalists = [each.settings for each in others[:FINALISTS]]
        if not finalists:
            return None
        held: list[list[Measured]] = [[] for _ in finalists]
        for turn in range(RUNOFF_ROUNDS if len(finalists) > 1 else 0):
            self._progress.start("run-off", f"round {turn + 1}/{RUNOFF_ROUNDS}")
            for settings, runs in zip(finalists, held, strict=True):
                runs.append(self._measure(settings))
        if len(finalists) > 1:
            self._progress.end("run-off", "ok", f"{len(finalists)} finalists")
        order = sorted(range(len(finalists)), key=lambda at: _rank(held[at], plan.limits))
        return finalists[order[0]]

    def pairs(self, winner: Settings) -> list[Pair]:
        """The present settings and the winner in alternation; who is first alternates too."""
        plan, found = self._plan, []
        for turn in range(plan.pairs):
            self._progress.start("pairs", f"{turn + 1}/{plan.pairs}")
            first, second = (plan.space.present, winner) if turn % 2 == 0 else (
                winner, plan.space.present,
            )  # fmt: skip
            one, other = self._measure(first), self._measure(second)
            found.append(Pair(one, other) if turn % 2 == 0 else Pair(other, one))
        self._progress.end("pairs", "ok", f"{len(found)}")
        return found


def _rank(runs: Sequence[Measured], limits: Limits) -> tuple[float, float]:
    if not runs:
        return (0.0, 0.0)
    excess = median(limits.excess_of(run) for run in runs)
    return (excess, -median(run.tokens_per_s for run in runs))


def ranked(tried: Sequence[Tried], limits: Limits) -> list[Tried]:
    """Trials that were measured to the end, best first; those that break limits come last."""
    done = [each for each in tried if each.measured is not None]
    return sorted(done, key=lambda each: _rank([each.measured] if each.measured else [], limits))


def words(settings: Mapping[str, Any]) -> str:
    """Settings in one line."""
    return ", ".join(f"{name} {str(value).lower()}" for name, value in settings.items())


def told(each: Tried) -> str:
    """A trial in one line."""
    assert each.measured is not None
    return f"{each.measured.tokens_per_s:.0f} tokens/s with {words(each.settings)}"


def identity(subject: Subject, plan: Plan) -> dict[str, Any]:
    """What makes the trials of two runs comparable: then they belong to one study."""
    from ...kernels import backend_name
    from ..bench.frame import device_name

    weights = sorted(subject.folder.glob("*.safetensors"))
    return {
        "model": subject.model,
        "checkpoint": [str(subject.folder), [[file.name, file.stat().st_size] for file in weights]],
        "memory": subject.spec["memory"],
        "present settings": dict(plan.space.present),
        "space": {name: list(values) for name, values in plan.space.choices.items()},
        "workload": workload.digest(plan.asks),
        "limits": asdict(plan.limits),
        "rounds": plan.rounds,
        "seed": plan.seed,
        "device": device_name(),
        "kernels": backend_name(),
    }


def run(subject: Subject, plan: Plan, engine: LiveEngine, progress: Progress) -> dict[str, Any]:
    """Tune, and return the result as plain data; it also lies in `result.json` of the folder."""
    study.check_identity(plan.home, identity(subject, plan))
    session = Session(subject, plan, engine, progress)
    try:
        session.search()
        result = _conclude(session, subject, plan)
        if result["patch"] is None and plan.patch.parent == plan.home:
            plan.patch.unlink(missing_ok=True)  # of an earlier run, which this verdict replaces
        bench = Bench(engine, subject.spec, subject.folder, plan.home, plan.seed)
        beats = result["verdict"]["beats"]
        settings = result["settings"] if beats else plan.space.present
        result["calibration"] = recalibrate(bench, settings, progress)
    except KeyboardInterrupt:
        result = _so_far(session, subject, plan) | {"interrupted": True}
    write_private(plan.home / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def _so_far(session: Session, subject: Subject, plan: Plan) -> dict[str, Any]:
    from ...kernels import backend_name
    from ..bench.frame import commit, device_name

    tried = session.tried()
    best = ranked(tried, plan.limits)
    return {
        "model": subject.model,
        "study": str(plan.home),
        "seed": plan.seed,
        "device": device_name(),
        "commit": commit(),
        "kernels": backend_name(),
        "workload": {"requests": len(plan.asks), "digest": workload.digest(plan.asks)},
        "limits": {
            "ttft_ms": None if plan.limits.ttft_s is None else plan.limits.ttft_s * 1e3,
            "itl_ms": None if plan.limits.itl_s is None else plan.limits.itl_s * 1e3,
        },
        "trials": {
            "asked": plan.trials,
            "finished": len(tried),
            **{
                outcome: sum(each.outcome == outcome for each in tried)
                for outcome in ("complete", "pruned", "refused")
            },
            "resumed": session.resumed,
            "out_of_time": session.is_out_of_time,
        },
        "present": dict(plan.space.present),
        "best_in_search": _plain_tried(best[0]) if best else None,
        "interrupted": False,
    }


def _plain_tried(each: Tried) -> dict[str, Any]:
    assert each.measured is not None
    figures = objective.plain_measured(each.measured)
    return {"number": each.number, "settings": each.settings, **figures}


def _conclude(session: Session, subject: Subject, plan: Plan) -> dict[str, Any]:
    result = _so_far(session, subject, plan)
    winner = session.winner()
    if winner is None:
        reason = "nothing better than the present settings was found"
        return result | {"verdict": {"beats": False, "reason": reason}, "patch": None}
    pairs = session.pairs(winner)
    verdict = objective.judge(pairs, plan.limits)
    result |= {
        "settings": winner,
        "changed": {k: list(v) for k, v in patch.changed(plan.space.present, winner).items()},
        "baseline": _middle([pair.baseline for pair in pairs]),
        "winner": _middle([pair.winner for pair in pairs]),
        "verdict": {
            "beats": verdict.beats,
            "reason": verdict.reason,
            "pairs": verdict.pairs,
            "wins": verdict.wins,
            "wins_needed": verdict.wins_needed,
            "ratio": {
                "min": round(verdict.ratio_min, 4),
                "median": round(verdict.ratio_median, 4),
                "max": round(verdict.ratio_max, 4),
            },
        },
        "patch": None,
    }
    if verdict.beats:
        fields = {name: winner[name] for name in result["changed"]}
        document = patch.patched_document(subject.raw, str(subject.folder), fields)
        patch.write_patch(plan.patch, document, patch.evidence_lines(result))
        result["patch"] = str(plan.patch)
    return result


def _middle(runs: Sequence[Measured]) -> dict[str, Any]:
    """Each figure's median over runs."""
    plain = [objective.plain_measured(run) for run in runs]
    return {key: round(median(row[key] for row in plain), 3) for key in plain[0]}
