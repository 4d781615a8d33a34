"""The search: which settings are tried next, which are given up early, and what is known so far?

Optuna's tree-structured Parzen estimator proposes, its percentile pruner gives up; everything is
kept in one SQLite file, whose writes survive a kill -9. A trial that was running when the process
died is closed and its settings are queued again: nothing is lost, and nothing that was finished is
measured a second time, since settings that were measured are never handed out again.

One process works on a study at a time: a lock on its folder, given back by the kernel when the
holder dies.
"""

import fcntl
import json
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...core.errors import ConflictError, RefusedError
from ...core.paths import write_private
from .measure import Measured
from .space import Settings, Space

#: Trials before the estimator's model is used, and before anything is pruned.
STARTUP_TRIALS, STARTUP_PRUNE = 8, 5
#: The worst share of runs at the same mark is given up.
GIVE_UP = 0.40
#: How often the estimator may propose what was measured, before a draw without it fills in.
PROPOSALS_MAX = 20


@dataclass(frozen=True, slots=True)
class Tried:
    """One finished trial; `measured` is None where it was given up or refused."""

    number: int
    settings: Settings
    outcome: str  # "complete", "pruned" or "refused"
    measured: Measured | None = None
    reason: str = ""


class TuneStudy:
    """A study in a folder of its own. Trial 0 has the present settings."""

    def __init__(self, folder: Path, space: Space, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._space, self._seed = optuna, space, seed
        database = folder / "study.db"
        database.touch(mode=0o600)
        self._study = optuna.create_study(
            storage=f"sqlite:///{database}",
            study_name="tune",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.PercentilePruner(
                100 * (1 - GIVE_UP), n_startup_trials=STARTUP_PRUNE
            ),
        )
        self.resumed = self._requeue()
        if space.present not in [each.settings for each in self.tried()]:
            self._study.enqueue_trial(space.indexes(space.present), skip_if_exists=True)
        # Another stream after every resume: the same one would propose the same again.
        self._study.sampler = optuna.samplers.TPESampler(
            seed=seed + 1000 * len(self._study.get_trials(deepcopy=False)),
            n_startup_trials=STARTUP_TRIALS,
            multivariate=True,
        )

    def _requeue(self) -> int:
        """Close trials that a killed process left running, and queue their settings again."""
        state = self._optuna.trial.TrialState
        left = self._study.get_trials(deepcopy=False, states=(state.RUNNING,))
        for trial in left:
            if set(trial.params) == set(self._space.choices):
                self._study.enqueue_trial(trial.params, skip_if_exists=False)
            self._study.tell(trial.number, state=state.FAIL)
        return len(left)

    def tried(self) -> list[Tried]:
        """Every finished trial, in order."""
        state = self._optuna.trial.TrialState
        done = self._study.get_trials(deepcopy=False, states=(state.COMPLETE, state.PRUNED))
        found = []
        for trial in done:
            about = trial.user_attrs
            measured = Measured(**about["measured"]) if "measured" in about else None
            settings = self._space.settings(trial.params)
            outcome = about.get("outcome", "complete")
            found.append(Tried(trial.number, settings, outcome, measured, about.get("reason", "")))
        return found

    def ask(self) -> tuple["Attempt", Settings] | None:
        """The next settings to measure: legal, and never measured before. None: all were."""
        seen = [tuple(each.settings.items()) for each in self.tried()]
        for _ in range(PROPOSALS_MAX):
            trial = self._study.ask()
            settings = self._suggest(trial)
            if tuple(settings.items()) not in seen and self._space.is_legal(settings):
                return Attempt(self._study, trial), settings
            # Not a trial of ours: nothing was measured.
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        left = [one for one in self._space.legal() if tuple(one.items()) not in seen]
        if not left:
            return None
        chosen = random.Random(f"{self._seed}/{len(seen)}").choice(left)
        self._study.enqueue_trial(self._space.indexes(chosen))
        trial = self._study.ask()
        return Attempt(self._study, trial), self._suggest(trial)

    def _suggest(self, trial: Any) -> Settings:
        choices = self._space.choices
        return self._space.settings(
            {name: trial.suggest_int(name, 0, len(values) - 1) for name, values in choices.items()}
        )


class Attempt:
    """A trial that is being measured."""

    def __init__(self, study: Any, trial: Any) -> None:
        self._study, self._trial = study, trial

    @property
    def number(self) -> int:
        """Its number in the study."""
        return int(self._trial.number)

    def give_up(self, mark: int, score: float) -> bool:
        """Note how it goes at a mark; whether others went so much better that it can end here."""
        self._trial.report(score, mark)
        return bool(self._trial.should_prune())

    def complete(self, measured: Measured, excess: float) -> None:
        """Measured to the end; `excess` above 0 breaks a limit."""
        self._trial.set_user_attr("measured", asdict(measured))
        self._trial.set_constraint("limits", excess)
        self._study.tell(self._trial, measured.tokens_per_s)

    def end(self, outcome: str, reason: str) -> None:
        """Given up ("pruned") or not possible ("refused")."""
        import optuna

        self._trial.set_user_attr("outcome", outcome)
        self._trial.set_user_attr("reason", reason)
        self._study.tell(self._trial, state=optuna.trial.TrialState.PRUNED)


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Hold a study's folder, made private; raises ConflictError when another process does."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                f"another process works on the study in {folder}",
                next_step="wait for it, or give another folder with --study",
            ) from error
        yield
    finally:
        os.close(descriptor)


def check_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write down what a study is about; RefusedError when the folder holds another one's trials.

    Trials of another workload, space or machine are not comparable, so they are never mixed.
    """
    path = folder / "study.json"
    if not path.is_file():
        write_private(path, json.dumps(identity, indent=1) + "\n")
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RefusedError(f"{path}: {error}", next_step="begin anew with --new") from error
    plain = json.loads(json.dumps(identity))
    differing = [key for key in plain if known.get(key) != plain[key]]
    if differing:
        raise RefusedError(
            f"the study in {folder} is about another {', '.join(differing)}",
            next_step="repeat the options it was begun with, begin anew with --new, or give "
            "another folder with --study",
        )


def forget(folder: Path) -> None:
    """Remove a study's files, so that the next one begins anew."""
    for name in ("study.db", "study.db-journal", "study.json"):
        (folder / name).unlink(missing_ok=True)
