"""What does the live engine do with a workload under given settings?

The engine of one rank in this process, with the real kernels and as much KV as the spec gives a
device: nothing is modelled. Arrivals run on a clock that advances by what a step took, so that
waiting for the next request costs the study nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from ...core.errors import RefusedError
from .space import Value
from .workload import Ask

#: Reports of progress in one run: after each quarter of the work.
MARKS = 4


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of a workload. Times in seconds; `running`: requests in the engine, mean over time.

    Inter-token times are those between two tokens of one request.
    """

    seconds: float
    tokens: int
    ttft_p50: float
    ttft_p95: float
    ttft_mean: float
    itl_p50: float
    itl_p95: float
    itl_mean: float
    running: float
    steps: int
    preemptions: int

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second."""
        return self.tokens / self.seconds


@dataclass(slots=True)
class Track:
    """What has come out so far: when each request's tokens came."""

    asks: Sequence[Ask]
    total: int = 0  # tokens of work: every prompt read and every token generated
    done: int = 0
    tokens: int = 0
    first_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    present_s: float = 0.0  # sum over requests of the time in the system
    _last_s: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.total = sum(len(ask.prompt) + ask.new_tokens for ask in self.asks)

    def token(self, at: int, index: int, now_s: float) -> None:
        """A token of request `at` came."""
        ask = self.asks[at]
        if index == 0:
            self.first_s.append(now_s - ask.at_s)
            self.done += len(ask.prompt)
        else:
            self.gaps_s.append(now_s - self._last_s[at])
        self._last_s[at] = now_s
        self.tokens += 1
        self.done += 1
        if index == ask.new_tokens - 1:
            self.present_s += now_s - ask.at_s

    def measured(self, seconds: float, stats: Any) -> Measured:
        """The figures of a run that is over."""
        first, gaps = sorted(self.first_s), sorted(self.gaps_s) or [0.0]
        return Measured(
            seconds=seconds,
            tokens=self.tokens,
            ttft_p50=percentile(first, 0.50),
            ttft_p95=percentile(first, 0.95),
            ttft_mean=sum(first) / len(first),
            itl_p50=percentile(gaps, 0.50),
            itl_p95=percentile(gaps, 0.95),
            itl_mean=sum(gaps) / len(gaps),
            running=self.present_s / seconds,
            steps=stats.steps,
            preemptions=stats.preemptions,
        )


#: Called with the track and the clock at each mark; may raise to end the run.
OnMark = Callable[[Track, float], None]


def percentile(ascending: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed (nearest rank)."""
    return ascending[min(int(len(ascending) * share), len(ascending) - 1)]


class LiveEngine:
    """A model in this process, and a fresh engine for every run."""

    def __init__(self, folder: Path) -> None:
        from transformers.utils.logging import disable_progress_bar

        from ...agents.engine import local

        disable_progress_bar()  # progress is ours to tell
        self._local = local
        self._forward, self._moe = local.open_forward(folder)
        self.vocab: int = self._forward.shape.vocab

    def context(self, spec: Mapping[str, Any]) -> int:
        """Tokens of the longest request that this spec allows."""
        own: int = self._forward.shape.context_tokens
        return min(spec["engine"].get("maxContext") or own, own)

    def run(
        self,
        spec: Mapping[str, Any],
        settings: Mapping[str, Value],
        asks: Sequence[Ask],
        on_mark: OnMark | None = None,
    ) -> Measured:
        """Serve the requests; raises EngineRefused when one can never run with these settings."""
        with self.threads(settings):
            return self._run(self.open(spec, settings), asks, on_mark)

    @staticmethod
    @contextmanager
    def threads(settings: Mapping[str, Value]) -> Iterator[None]:
        """Compute with as many threads as a worker with these settings."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(int(settings["threads"]))
        try:
            yield
        finally:
            torch.set_num_threads(before)

    @property
    def moe(self) -> Any:
        """Who computes the experts: give it to `engine.run`."""
        return self._moe

    def open(self, spec: Mapping[str, Any], settings: Mapping[str, Value]) -> Any:
        """An engine as a worker of this spec would build it."""
        from math import prod

        from ...agents.engine.context import QUEUE_FACTOR
        from ...agents.engine.engine import Limits

        block_tokens = int(settings["kvBlockTokens"])
        limits = Limits(
            max_batch_tokens=int(settings["maxBatchTokens"]),
            max_requests=int(settings["maxRequests"]),
            prefill_chunk=int(settings["prefillChunk"]),
            block_tokens=block_tokens,
            max_context=self.context(spec),
            max_queued=int(settings["maxRequests"]) * QUEUE_FACTOR,
            prefix_cache=bool(settings["prefixCache"]),
        )
        block_bytes = 4 * prod(self._forward.shape.kv_block_shape(block_tokens))  # float32
        blocks = int(spec["memory"]["kvPerDevice"]) // block_bytes
        if blocks < 1:
            raise RefusedError(
                f"kvPerDevice holds no block of {block_tokens} tokens ({block_bytes} B)",
                next_step="raise memory.kvPerDevice",
            )
        return self._local.open_engine(self._forward, limits, blocks)

    def _run(self, engine: Any, asks: Sequence[Ask], on_mark: OnMark | None) -> Measured:
        track, clock_s, coming, mark = Track(asks), 0.0, 0, 1
        while coming < len(asks) or engine.has_work:
            if not engine.has_work:
                clock_s = max(clock_s, asks[coming].at_s)
            began = perf_counter()
            coming = self._submit(engine, asks, coming, clock_s)
            plan = engine.plan()
            tokens = engine.run(plan, self._moe).tokens if plan else ()
            clock_s += perf_counter() - began
            for token in tokens:
                track.token(int(token.request_id), token.index, clock_s)
            if on_mark is not None and track.done * MARKS >= mark * track.total:
                mark = track.done * MARKS // track.total + 1
                on_mark(track, clock_s)
        return track.measured(clock_s, engine.stats())

    @staticmethod
    def _submit(engine: Any, asks: Sequence[Ask], coming: int, clock_s: float) -> int:
        """Hand over who has come; beyond the queue's limit they wait outside, as at a gateway."""
        from ...agents.engine.request import Request

        scheduler = engine.scheduler
        while coming < len(asks) and asks[coming].at_s <= clock_s:
            if scheduler.waiting_count >= scheduler.limits.max_queued:
                break
            ask = asks[coming]
            engine.submit(Request(str(coming), ask.prompt, ask.new_tokens))
            coming += 1
        return coming
