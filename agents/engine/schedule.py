"""Which rows run in the next step?

Continuous batching: every step first takes one row of each request that is decoding, then fills the
token budget with prompt chunks, the least recently served prompt first, so that neither a long
prompt nor a crowd of short ones starves the other. Pure: no tensor but the block table, no clock.

Retry-safe: `plan_step` changes no progress, only `complete_step` does. When a step fails, the same
plan (or a fresh one) runs again and rewrites the same KV positions. Memory is taken whole for a
prompt when it is admitted and block by block while decoding; when it runs out, the youngest request
gives its blocks back and is computed again later. The oldest request therefore always advances.
"""

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from ...core.errors import RefusedError
from .kv import BlockAllocator
from .request import DoneOut, DoneReason, Request, StepResult, TokenOut


class EngineRefused(RefusedError):
    """A request that this engine will not take; `str()` says why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The budget of one rank. Values come from the model's spec."""

    max_batch_tokens: int = 128
    max_requests: int = 64
    prefill_chunk: int = 64
    block_tokens: int = 16
    max_context: int = 4096
    max_queued: int = 256

    @property
    def max_running(self) -> int:
        """Requests that decode at once; leaves part of the budget to prompts."""
        prompt_share = min(self.prefill_chunk, self.max_batch_tokens // 2)
        return max(1, min(self.max_requests, self.max_batch_tokens - prompt_share))


@dataclass(slots=True, eq=False)
class Sequence:
    """A request in progress: its tokens, how many have KV, and where."""

    request: Request
    tokens: list[int]
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    lane: int = -1
    cancelled: str = ""

    @property
    def generated(self) -> int:
        """Generated tokens, those before a replay included."""
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def is_decoding(self) -> bool:
        """Whether exactly the newest token lacks KV."""
        return self.computed == len(self.tokens) - 1


@dataclass(frozen=True, slots=True)
class StepItem:
    """Rows start..start+count of one sequence; the last is sampled when it is the newest token."""

    sequence: Sequence
    start: int
    count: int
    samples: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The rows of one step, in batch order."""

    items: tuple[StepItem, ...]
    row_count: int
    sampled_count: int


class Scheduler:
    """Decides steps and keeps progress; owned by one thread."""

    def __init__(self, limits: Limits, blocks: BlockAllocator) -> None:
        self.limits = limits
        self.blocks = blocks
        table_width = -(-limits.max_context // limits.block_tokens)
        self.table_LW = np.zeros((limits.max_running, table_width), dtype=np.int64)
        self.preemptions = 0
        self._lanes = list(range(limits.max_running))[::-1]
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # oldest first
        self._prompts: deque[Sequence] = deque()  # running and not decoding; least served first
        self._by_id: dict[str, Sequence] = {}
        self._dones: list[DoneOut] = []

    # ---- requests ------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue a request. Raises EngineRefused when it can never run here or the queue is full."""
        self._check_fits(request)
        sequence = Sequence(request, [*request.prompt_ids, *request.already])
        reason = self._ended(sequence)
        if reason:
            self._dones.append(DoneOut(request.id, reason))
            return
        self._by_id[request.id] = sequence
        self._waiting.append(sequence)

    def cancel(self, request_id: str, reason: str = DoneReason.CANCELLED) -> bool:
        """End a request before the next plan; False when it is unknown (already done)."""
        sequence = self._by_id.get(request_id)
        if sequence is None:
            return False
        sequence.cancelled = sequence.cancelled or str(reason)
        return True

    @property
    def has_work(self) -> bool:
        """Whether a plan or a done would come out."""
        return bool(self._by_id or self._dones)

    @property
    def running_count(self) -> int:
        """Requests that hold blocks."""
        return len(self._running)

    @property
    def waiting_count(self) -> int:
        """Requests that wait for a lane or for blocks."""
        return len(self._waiting)

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Every request that is not done."""
        return tuple(self._by_id)

    def drain_dones(self) -> tuple[DoneOut, ...]:
        """Ends that no step reported: cancellations, and replays that had nothing left to do."""
        self._reap()
        dones, self._dones = tuple(self._dones), []
        return dones

    def _check_fits(self, request: Request) -> None:
        limits, length = self.limits, len(request.prompt_ids) + len(request.already)
        if request.id in self._by_id:
            raise EngineRefused(f"request {request.id} is already here")
        if len(self._waiting) >= limits.max_queued:
            raise EngineRefused(f"queue full: {len(self._waiting)} requests wait")
        if not request.prompt_ids or request.max_tokens < 1:
            raise EngineRefused("an empty prompt or no token to generate")
        if len(request.prompt_ids) >= limits.max_context:
            raise EngineRefused(
                f"a prompt of {len(request.prompt_ids)} tokens; the context is {limits.max_context}"
            )
        need = self._blocks_for(min(length + request.max_tokens, limits.max_context) - 1)
        if need > self.blocks.total:
            raise EngineRefused(f"{need} KV blocks needed, this rank has {self.blocks.total}")

    # ---- planning ------------------------------------------------------------------------------

    def plan_step(self) -> StepPlan | None:
        """The next step's rows, or None when nothing can run. May be called again without harm."""
        self._reap()
        self._admit()
        items: list[StepItem] = []
        for sequence in list(self._running):
            if sequence.lane >= 0 and sequence.is_decoding and self._extend(sequence):
                items.append(StepItem(sequence, sequence.computed, 1, True))
        budget = self.limits.max_batch_tokens - len(items)
        for sequence in self._prompts:
            count = min(self.limits.prefill_chunk, len(sequence.tokens) - sequence.computed, budget)
            if count <= 0:
                break
            samples = sequence.computed + count == len(sequence.tokens)
            items.append(StepItem(sequence, sequence.computed, count, samples))
            budget -= count
        if not items:
            return None
        rows = sum(item.count for item in items)
        return StepPlan(tuple(items), rows, sum(item.samples for item in items))

    def _admit(self) -> None:
        """Give lanes and blocks to waiting requests in order, leaving a block per running one."""
        while self._waiting and self._lanes:
            sequence = self._waiting[0]
            need = self._blocks_for(len(sequence.tokens))
            spare = len(self._running)
            taken = self.blocks.allocate(need) if self.blocks.free_count >= need + spare else None
            if taken is None:
                return
            self._waiting.popleft()
            sequence.lane, sequence.blocks = self._lanes.pop(), taken
            self.table_LW[sequence.lane, : len(taken)] = taken
            self._running.append(sequence)
            if not sequence.is_decoding:
                self._prompts.append(sequence)

    def _extend(self, sequence: Sequence) -> bool:
        """Make sure the newest token has a block; False when the sequence gave way itself."""
        while len(sequence.blocks) < self._blocks_for(len(sequence.tokens)):
            taken = self.blocks.allocate(1)
            if taken is not None:
                self.table_LW[sequence.lane, len(sequence.blocks)] = taken[0]
                sequence.blocks += taken
                continue
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, victim: Sequence) -> None:
        self.preemptions += 1
        self._release(victim)
        self._waiting.appendleft(victim)

    def preempt_blocks_from(self, first: int) -> None:
        """Preempt every request that holds a block numbered `first` or above (before a shrink)."""
        for sequence in reversed(list(self._running)):
            if any(block >= first for block in sequence.blocks):
                self._preempt(sequence)

    def end_unplaceable(self) -> None:
        """After a shrink: end waiting requests whose tokens no longer fit the whole pool."""
        for sequence in self._waiting:
            if self._blocks_for(len(sequence.tokens)) > self.blocks.total:
                sequence.cancelled = sequence.cancelled or "error:the KV pool became too small"

    # ---- progress ------------------------------------------------------------------------------

    def complete_step(self, plan: StepPlan, sampled: list[int]) -> StepResult:
        """Record that a plan ran; `sampled` holds one token per sampling item, in order."""
        tokens: list[TokenOut] = []
        dones: list[DoneOut] = []
        draw = iter(sampled)
        for item in plan.items:
            sequence = item.sequence
            token = next(draw) if item.samples else -1
            if sequence.lane < 0 or sequence.cancelled:
                continue
            was_prompt = not sequence.is_decoding
            sequence.computed = item.start + item.count
            if item.samples:
                sequence.tokens.append(token)
                tokens.append(TokenOut(sequence.request.id, sequence.generated - 1, token))
                reason = self._ended(sequence)
                if reason:
                    dones.append(DoneOut(sequence.request.id, reason))
                    self._forget(sequence)
                    continue
            if was_prompt:
                self._prompts.remove(sequence)
                if not sequence.is_decoding:
                    self._prompts.append(sequence)
        return StepResult(tuple(tokens), (*dones, *self.drain_dones()))

    def _ended(self, sequence: Sequence) -> str:
        request, generated = sequence.request, sequence.generated
        if generated and sequence.tokens[-1] in request.eos_ids:
            return DoneReason.STOP
        if generated >= request.max_tokens or len(sequence.tokens) >= self.limits.max_context:
            return DoneReason.LENGTH
        return ""

    def _reap(self) -> None:
        for sequence in [held for held in self._by_id.values() if held.cancelled]:
            self._dones.append(DoneOut(sequence.request.id, sequence.cancelled))
            self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        del self._by_id[sequence.request.id]
        if sequence.lane >= 0:
            self._release(sequence)
        else:
            self._waiting.remove(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Take lane and blocks back; what was computed is computed again if it ever returns."""
        self._running.remove(sequence)
        if sequence in self._prompts:
            self._prompts.remove(sequence)
        self.blocks.free(sequence.blocks)
        self._lanes.append(sequence.lane)
        sequence.blocks, sequence.lane, sequence.computed = [], -1, 0

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_tokens)
