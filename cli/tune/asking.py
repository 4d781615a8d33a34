"""From a command's options to a session: which model, which workload, which limits, which folder?

Everything that can be refused is refused here, before anything is measured.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import NotFoundError, UsageError
from ...core.paths import Home
from ..bench.frame import core_count
from ..interrupts import interruptible
from ..progress import open_progress
from . import patch, session, study, workload
from .measure import LiveEngine
from .objective import Limits
from .session import Plan, Subject
from .space import build_space

#: Rounds of a workload in one trial; the fastest counts.
ROUNDS = 2
#: Alternating pairs of the end: seven of eight must be won.
PAIRS = 8


@dataclass(frozen=True, slots=True)
class Wish:
    """The options of `moectl tune`, as given."""

    model: str
    file: str
    trials: int
    sets: tuple[str, ...]
    load: tuple[str, ...]
    slo: str
    study: Path | None
    new: bool
    seed: int
    budget: str
    out: Path | None


def carry_out(wish: Wish) -> dict[str, Any]:
    """Tune, with progress on stderr."""
    subject = find_subject(wish.model, wish.file)
    space = build_space(subject.spec, wish.sets, core_count())
    limits = find_limits(wish.slo, subject.spec)
    budget_s = _seconds(wish.budget, "--budget")
    load = parse_load(wish.load, wish.seed)
    home = (wish.study or Home.from_environment().root / "tune" / wish.model).expanduser().resolve()
    if wish.out is not None:
        patch.check_place(wish.out)
    with study.own_folder(home), open_progress() as progress, interruptible():
        if wish.new:
            study.forget(home)
        progress.start("load", str(subject.folder))
        engine = LiveEngine(subject.folder)
        progress.end("load", "ok", str(subject.folder))
        asks = load.asks(engine.vocab, subject.folder)
        workload.check_fits(asks, engine.context(subject.spec))
        plan = Plan(
            space=space,
            asks=asks,
            limits=limits,
            trials=wish.trials,
            rounds=ROUNDS,
            pairs=PAIRS,
            seed=wish.seed,
            budget_s=budget_s,
            home=home,
            patch=wish.out or home / f"{wish.model}-tuned.yaml",
        )
        return session.run(subject, plan, engine, progress)


def find_subject(model: str, file: str) -> Subject:
    """The model of a file, of the fleet, or of the shipped spec. Raises NotFoundError."""
    from .. import specs

    if not file and _has_fleet():
        return _declared(model)
    file = file or specs.DEFAULT_SPEC
    documents = [each for each in specs.read_documents(file) if each.kind == "Model"]
    found = next((each for each in documents if each.name == model), None)
    if found is None:
        names = ", ".join(sorted(each.name for each in documents)) or "none"
        raise NotFoundError(f"{file} declares no model {model!r}", next_step=f"declared: {names}")
    (request,) = specs.to_request([found], specs.folder_of(file))
    return _subject(model, found.raw, request["spec"])


def _has_fleet() -> bool:
    """Whether a context is chosen or a fleet runs here; then its words count."""
    from .. import contexts
    from ..instance import load_instance

    home = Home.from_environment()
    return contexts.chosen(home) is not None or load_instance(home) is not None


def _declared(model: str) -> Subject:
    from ...core.spec import API_VERSION
    from ..instance import connect

    with connect() as client:
        declared = {item["name"]: item["spec"] for item in client.get("specs/Model")}
    if model not in declared:
        names = ", ".join(sorted(declared)) or "none"
        raise NotFoundError(
            f"the fleet declares no model {model!r}",
            next_step=f"declared: {names}; or name a file with -f",
        )
    spec = declared[model]
    raw = {
        "apiVersion": API_VERSION,
        "kind": "Model",
        "metadata": {"name": model},
        "spec": spec,
    }
    return _subject(model, raw, spec)


def _subject(model: str, raw: Mapping[str, Any], spec: Mapping[str, Any]) -> Subject:
    from ...core.errors import CheckpointError

    folder = Path(spec["source"]["path"])
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json", next_step="mend spec.source.path")
    return Subject(model, raw, spec, folder)


def find_limits(text: str, spec: Mapping[str, Any]) -> Limits:
    """Limits of `--slo`, else those of the spec (its tpot is the time between tokens)."""
    if not text:
        slo = spec.get("slo") or {}
        ttft, itl = slo.get("ttft"), slo.get("tpot")
        return Limits(
            _seconds(ttft, "slo.ttft") if ttft else None, _seconds(itl, "slo.tpot") if itl else None
        )
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in ("ttft", "itl") or not value:
            raise UsageError(f"--slo {text}: not ttft=TIME,itl=TIME", next_step="such as itl=20ms")
        found[name] = _seconds(value, f"--slo {name}")
    return Limits(found.get("ttft"), found.get("itl"))


def _seconds(text: str, where: str) -> float:
    from ...core.units import UnitError, parse_duration_s

    try:
        seconds = parse_duration_s(text)
    except UnitError as error:
        raise UsageError(f"{where}: {error.reason}", next_step=error.fix) from error
    if seconds <= 0:
        raise UsageError(f"{where} {text}: must be above zero")
    return seconds


@dataclass(frozen=True, slots=True)
class Load:
    """A workload that was asked for: a file, or a shape to draw."""

    shape: workload.Shape
    file: Path | None = None

    def asks(self, vocab: int, folder: Path) -> tuple[workload.Ask, ...]:
        """The requests. `folder` has the tokenizer, for prompts that are text."""
        if self.file is None:
            return workload.draw(self.shape, vocab)

        @functools.cache
        def text_model() -> Any:
            from ...agents.gateway.tokenizer import load_text_model

            return load_text_model(folder)

        def encode(text: str) -> Sequence[int]:
            tokens: Sequence[int] = text_model().encode(text)
            return tokens

        return workload.read_jsonl(self.file, vocab, self.shape.seed, encode)


def parse_load(parts: Sequence[str], seed: int) -> Load:
    """`--load KEY=VALUE` options; raises UsageError naming the one that is wrong."""
    given: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if key not in ("requests", "input", "output", "rate", "shared", "file") or not equals:
            raise UsageError(
                f"--load {part}: not KEY=VALUE",
                next_step="keys: requests, input, output, rate, shared, file",
            )
        given[key] = value
    if "file" in given:
        if len(given) > 1:
            raise UsageError("--load file=... has its requests in the file; no other key fits")
        return Load(workload.Shape(seed=seed), Path(given["file"]).expanduser())
    default = workload.Shape()
    try:
        requests = int(given.get("requests", default.requests))
        rate, shared = float(given.get("rate", 0)), int(given.get("shared", 0))
    except ValueError as error:
        raise UsageError(f"--load: {error}") from error
    if not 1 <= requests <= workload.REQUESTS_MAX or not 0 <= rate < 1e9 or shared < 0:
        raise UsageError(
            f"--load: requests {requests}, rate {rate:g} and shared {shared} do not fit",
            next_step=f"1 to {workload.REQUESTS_MAX} requests, rate and shared of at least 0",
        )
    ranges = [
        workload.parse_range(given[key], f"--load {key}") if key in given else usual
        for key, usual in (("input", default.input_tokens), ("output", default.output_tokens))
    ]
    return Load(workload.Shape(requests, ranges[0], ranges[1], rate, shared, seed))
