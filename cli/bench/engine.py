"""How fast is one rank of the engine beside plain batched generation by transformers?

    together   all requests at once: tokens per second of both
    arrivals   the same requests over time, mixed lengths: continuous against static batches
    prefix     a shared prompt of about a thousand tokens: prefix cache on against off

Same model, same requests, same process, same number of threads; rounds of both alternate, and the
best round of each counts, since other work on the machine only ever makes one slower. Arrivals run
on a clock that advances by what a step or a batch took, so that waiting costs the bench nothing.
No control plane: this is the engine in one process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from ...core.errors import RefusedError
from .frame import SOURCE_ROOT, BenchOptions, BenchResult, Results

DEMO = SOURCE_ROOT / "clusters" / "models" / "demo"
ROUNDS, ROUNDS_FULL = 3, 7
THREADS = 1
#: Static batches of the baseline: as many requests as the engine decodes at once.
BATCH_MAX = 32
KV_BLOCKS = 3000
PREFIX_TOKENS, PREFIX_REQUESTS, PREFIX_NEW = 1024, 16, 16


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: its prompt, how many tokens it wants, when it comes."""

    prompt: tuple[int, ...]
    new_tokens: int
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """What a system did: seconds until the last token, mean seconds to the first, tokens."""

    seconds: float
    first_token_s: float
    tokens: tuple[tuple[int, ...], ...]

    @property
    def tokens_per_s(self) -> float:
        """Tokens that were asked for, per second."""
        return sum(map(len, self.tokens)) / self.seconds


def run(options: BenchOptions) -> BenchResult:
    """All three parts."""
    import torch

    folder = options.files[0] if options.files else DEMO
    if not (folder / "config.json").is_file():
        raise RefusedError(f"{folder}: no config.json", next_step="name a checkpoint folder")
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        return _run(options, folder)
    finally:
        torch.set_num_threads(before)


def _run(options: BenchOptions, folder: Path) -> BenchResult:
    options.report("load", str(folder))
    rank, plain = Rank(folder), Plain(folder)
    rounds = ROUNDS_FULL if options.full else ROUNDS
    options.report("together", f"{rounds} rounds")
    asks = mixed(options.seed, rank.vocab, 32, new_tokens=(48, 48))
    ours, theirs = best_of(rounds, (lambda: rank.run(asks), lambda: plain.run(asks)))
    results: Results = {
        "together": _row(ours),
        "together, transformers": _row(theirs),
    }
    options.report("arrivals", f"{rounds} rounds")
    gap_s = ours.seconds / len(asks)
    arriving = mixed(options.seed + 1, rank.vocab, 64, new_tokens=(4, 96), gap_s=gap_s)
    later, theirs_later = best_of(rounds, (lambda: rank.run(arriving), lambda: plain.run(arriving)))
    results |= {"arrivals": _row(later), "arrivals, transformers": _row(theirs_later)}
    options.report("prefix", f"{rounds} rounds")
    shared = shared_prefix(options.seed + 2, rank.vocab)
    cached, uncached = best_of(
        rounds, (lambda: rank.run(shared), lambda: rank.run(shared, prefix_cache=False))
    )
    results |= {"prefix, cache on": _row(cached), "prefix, cache off": _row(uncached)}
    summary = {
        "tokens_per_s": ours.tokens_per_s,
        "hf_tokens_per_s": theirs.tokens_per_s,
        "ratio": ours.tokens_per_s / theirs.tokens_per_s,
        "ratio_arrivals": later.tokens_per_s / theirs_later.tokens_per_s,
        "ttft_ratio_arrivals": theirs_later.first_token_s / later.first_token_s,
        "prefix_speedup": uncached.seconds / cached.seconds,
        "same_tokens": same_share(ours, theirs),
        "prefix_same_tokens": same_share(cached, uncached),
    }
    return BenchResult("engine", options.seed, results, summary, notes=_notes(folder, rounds))


def _notes(folder: Path, rounds: int) -> tuple[str, ...]:
    from ...kernels import backend_name

    return (
        f"model {folder.name} in float32, {THREADS} thread each, kernels: {backend_name()}, "
        f"best of {rounds} alternating rounds",
        f"transformers: generate() with its own cache, left-padded batches of up to {BATCH_MAX}; "
        "on arrival the next batch takes all that wait",
        "same_tokens: share of equal greedy tokens; padding moves the last bits of transformers",
    )


def _row(done: Run) -> dict[str, float]:
    return {
        "tokens_per_s": done.tokens_per_s,
        "seconds": done.seconds,
        "first_token_s": done.first_token_s,
        "tokens": sum(map(len, done.tokens)),
    }


def mixed(
    seed: int, vocab: int, count: int, new_tokens: tuple[int, int], gap_s: float = 0.0
) -> list[Ask]:
    """Requests of mixed lengths; with a gap they arrive at random, `gap_s` apart on average."""
    import numpy as np

    random, at_s, asks = np.random.RandomState(seed), 0.0, []
    for _ in range(count):
        prompt = random.randint(1, vocab, random.randint(16, 129)).tolist()
        asks.append(Ask(tuple(prompt), int(random.randint(new_tokens[0], new_tokens[1] + 1)), at_s))
        at_s += float(random.exponential(gap_s)) if gap_s else 0.0
    return asks


def shared_prefix(seed: int, vocab: int) -> list[Ask]:
    """Requests at once that begin with the same long prompt."""
    import numpy as np

    random = np.random.RandomState(seed)
    common = random.randint(1, vocab, PREFIX_TOKENS).tolist()
    own = [random.randint(1, vocab, 16).tolist() for _ in range(PREFIX_REQUESTS)]
    return [Ask((*common, *each), PREFIX_NEW) for each in own]


def best_of(rounds: int, systems: Sequence[Callable[[], Run]]) -> list[Run]:
    """Each system's fastest round; they take turns."""
    runs: list[list[Run]] = [[] for _ in systems]
    for _ in range(rounds):
        for system, held in zip(systems, runs, strict=True):
            held.append(system())
    return [min(held, key=lambda each: each.seconds) for held in runs]


def same_share(one: Run, other: Run) -> float:
    """Share of tokens that agree, position by position."""
    pairs = [
        (a, b)
        for left, right in zip(one.tokens, other.tokens, strict=True)
        for a, b in zip(left, right, strict=True)
    ]
    return sum(a == b for a, b in pairs) / len(pairs)


class Rank:
    """The engine, one rank, experts here."""

    def __init__(self, folder: Path) -> None:
        from ...agents.engine import local

        self._local = local
        self._forward, self._moe = local.open_forward(folder)
        self.vocab = self._forward.shape.vocab

    def run(self, asks: Sequence[Ask], prefix_cache: bool = True) -> Run:
        """Serve the requests as they come; a fresh engine, nothing cached."""
        from ...agents.engine.engine import Limits
        from ...agents.engine.request import Request

        limits = Limits(
            max_batch_tokens=256,
            max_requests=64,
            prefill_chunk=192,
            max_context=min(self._forward.shape.context_tokens, 2048),
            prefix_cache=prefix_cache,
        )
        engine = self._local.open_engine(self._forward, limits, KV_BLOCKS)
        out: list[list[int]] = [[] for _ in asks]
        first_s = [0.0] * len(asks)
        clock_s, coming = 0.0, 0
        while coming < len(asks) or engine.has_work:
            if not engine.has_work:
                clock_s = max(clock_s, asks[coming].at_s)
            began = perf_counter()
            while coming < len(asks) and asks[coming].at_s <= clock_s:
                ask = asks[coming]
                engine.submit(Request(str(coming), ask.prompt, ask.new_tokens))
                coming += 1
            plan = engine.plan()
            tokens = engine.run(plan, self._moe).tokens if plan else ()
            clock_s += perf_counter() - began
            for token in tokens:
                at = int(token.request_id)
                out[at].append(token.token)
                first_s[at] = first_s[at] or clock_s - asks[at].at_s
        return Run(clock_s, sum(first_s) / len(asks), tuple(map(tuple, out)))


class Plain:
    """transformers as it is: `generate` over padded batches."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval()

    def run(self, asks: Sequence[Ask]) -> Run:
        """Batch after batch; a batch takes all that have come, up to BATCH_MAX."""
        out: list[tuple[int, ...]] = []
        first_s, clock_s = [], 0.0
        while len(out) < len(asks):
            clock_s = max(clock_s, asks[len(out)].at_s)
            batch = [ask for ask in asks[len(out) :] if ask.at_s <= clock_s][:BATCH_MAX]
            began = perf_counter()
            marks, tokens = self._generate(batch)
            first_s += [clock_s + marks - began - ask.at_s for ask in batch]
            clock_s += perf_counter() - began
            out += tokens
        return Run(clock_s, sum(first_s) / len(asks), tuple(out))

    def _generate(self, batch: Sequence[Ask]) -> tuple[float, list[tuple[int, ...]]]:
        """When the first tokens were there, and each request's tokens."""
        torch, width = self._torch, max(len(ask.prompt) for ask in batch)
        longest = max(ask.new_tokens for ask in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, ask in enumerate(batch):
            ids[row, width - len(ask.prompt) :] = torch.tensor(ask.prompt)
            mask[row, width - len(ask.prompt) :] = 1
        marks: list[float] = []

        def note(_: Any, __: Any, **___: Any) -> Any:
            marks.append(perf_counter())
            return torch.zeros(len(batch), dtype=torch.bool)

        with torch.inference_mode():
            made = self._model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=longest,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                stopping_criteria=[note],
            )
        new = made[:, width:].tolist()
        return marks[0], [
            tuple(tokens[: ask.new_tokens]) for tokens, ask in zip(new, batch, strict=True)
        ]


def draw(result: BenchResult, path: Path) -> None:
    """Tokens per second of every case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(result.results)
    figure, axes = pyplot.subplots(figsize=(8, 3), layout="constrained")
    colours = ["tab:blue" if index % 2 == 0 else "tab:gray" for index in range(len(names))]
    axes.barh(names, [result.results[name]["tokens_per_s"] for name in names], color=colours)
    axes.invert_yaxis()
    axes.set_xlabel("tokens per second")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
