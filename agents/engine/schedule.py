"""Which rows run in the next step?

Continuous batching: every step first takes one row of each request that is decoding, then fills the
token budget with prompt chunks, the least recently served prompt first, so that neither a long
prompt nor a crowd of short ones starves the other. Pure: no tensor but the block table, no clock.

Retry-safe: `plan_step` changes no progress that a failed step would have to take back, only
`complete_step` does. When a step fails, the same plan (or a fresh one) runs again and rewrites the
same KV positions. Memory is taken whole for a prompt when it is admitted and block by block while
decoding; when it runs out, the last in line (lowest priority, then youngest) gives its blocks back
and is computed again later. The first in line therefore always advances.

Prefix cache: blocks of equal content up to their end are one block. A prompt takes over what is
there when it is admitted and before every chunk, and lets a step pass when another prompt is
computing the very block that it needs next. Since rows are bit-stable, a shared block holds the
bits that the request would have computed itself.
"""

from bisect import insort
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from .kv import BlockAllocator
from .moves import Standing
from .progress import EngineRefused, Limits, Sequence, StepItem, StepPlan, with_lanes
from .request import DoneOut, DoneReason, Likelihood, Request, StepResult, TokenOut

__all__ = ["EngineRefused", "Limits", "Scheduler", "Sequence", "StepItem", "StepPlan"]


class Scheduler:
    """Decides steps and keeps progress; owned by one thread."""

    def __init__(self, limits: Limits, blocks: BlockAllocator) -> None:
        self.limits = limits
        self.blocks = blocks
        table_width = -(-limits.max_context // limits.block_tokens)
        self.table_LW = np.zeros((limits.max_running, table_width), dtype=np.int64)
        self.preemptions = 0
        self.prompt_tokens_reused = 0
        self._arrivals = 0
        self._lanes = list(range(limits.max_running))[::-1]
        self._waiting: list[Sequence] = []  # both in line: by `Sequence.place`
        self._running: list[Sequence] = []
        self._prompts: deque[Sequence] = deque()  # running and not decoding; least served first
        self._by_id: dict[str, Sequence] = {}
        self._dones: list[DoneOut] = []

    def blocks_by_request(self) -> dict[str, list[int]]:
        """KV blocks of every request that has some. May be called from another thread."""
        return {s.request.id: list(s.blocks) for s in list(self._by_id.values()) if s.blocks}

    def set_limits(self, limits: Limits) -> None:
        """Other budgets from the next plan on, blocks as they were; who is beyond waits again."""
        for sequence in [each for each in self._running if each.lane >= limits.max_running]:
            self._preempt(sequence)
        self.table_LW, self.limits = with_lanes(self.table_LW, limits.max_running), limits
        taken = {sequence.lane for sequence in self._running}
        self._lanes = [lane for lane in range(limits.max_running)[::-1] if lane not in taken]

    # ---- requests ------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue a request. Raises EngineRefused when it can never run here or the queue is full."""
        self._check_fits(request)
        self._arrivals += 1
        sequence = Sequence(request, [*request.prompt_ids, *request.already], self._arrivals)
        reason = self._ended(sequence)
        if reason:
            self._dones.append(DoneOut(request.id, reason))
            return
        self._by_id[request.id] = sequence
        insort(self._waiting, sequence, key=_place)

    def adopt(self, request: Request, computed: int, blocks: Iterable[int]) -> None:
        """Go on with another rank's request; `blocks` hold the KV of its first `computed` tokens.

        They are the sequence's from now on. Raises EngineRefused when there is no lane, or no block
        for the rest of its tokens; then they are still the caller's.
        """
        self._check_fits(request)
        held = list(blocks)
        need = self._blocks_for(len(request.prompt_ids) + len(request.already))
        more = self.blocks.allocate(max(need - len(held), 0)) if self._lanes else None
        if more is None:
            raise EngineRefused("no lane or no KV block is free for a request that moves here")
        self.blocks.free(held[need:])
        self._arrivals += 1
        sequence = Sequence(request, [*request.prompt_ids, *request.already], self._arrivals)
        sequence.computed, sequence.blocks = computed, held[:need] + more
        self._by_id[request.id] = sequence
        self._give_lane(sequence)

    def standing(self) -> list[Standing]:
        """Every request that is to go on, as it stands between two steps."""
        going_on = (held for held in self._by_id.values() if not held.cancelled)
        return [Standing.of(sequence, self.limits.max_context) for sequence in going_on]

    def continued(self, request_id: str) -> Request:
        """The request with all that was generated so far: what another rank goes on from."""
        sequence = self._by_id[request_id]
        generated = sequence.tokens[len(sequence.request.prompt_ids) :]
        return replace(sequence.request, already=tuple(generated))

    @property
    def lanes_free(self) -> int:
        """Requests that could run beside those that do."""
        return len(self._lanes)

    @property
    def queue_free(self) -> int:
        """Requests that could be queued beside those that are."""
        return self.limits.max_queued - len(self._waiting)

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
    def sequences(self) -> dict[str, Sequence]:
        """Every request that is not done, by its id."""
        return dict(self._by_id)

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
        longest = min(request.tokens_max, limits.max_context)
        need = self._blocks_for(max(longest, length) - 1)
        if need > self.blocks.total:
            raise EngineRefused(f"{need} KV blocks needed, this rank has {self.blocks.total}")

    # ---- planning ------------------------------------------------------------------------------

    def plan_step(self) -> StepPlan | None:
        """The next step's rows, or None when nothing can run. May be called again without harm."""
        self._reap()
        self._admit()
        items: list[StepItem] = []
        for sequence in list(self._running):
            is_next = sequence.lane >= 0 and not sequence.is_reading
            if is_next and self._extend(sequence):
                items.append(StepItem(sequence, sequence.computed, 1, True))
        self._plan_prompts(items, self.limits.max_batch_tokens - len(items))
        if not items:
            return None
        rows = sum(item.count for item in items)
        return StepPlan(tuple(items), rows, sum(item.samples for item in items))

    def _plan_prompts(self, items: list[StepItem], budget: int) -> None:
        """Fill the rest of the budget with chunks of prompts, highest priority first."""
        in_work: set[bytes] = set()
        for sequence in sorted(self._prompts, key=_priority):
            self._take_over(sequence)
            left = len(sequence.tokens) - sequence.computed
            count = min(self.limits.prefill_chunk, left, budget)
            if count <= 0:
                break
            keys = self._keys_ahead(sequence, count)
            if keys and keys[0] in in_work:
                continue  # another prompt computes that block in this very step
            in_work.update(keys)
            items.append(StepItem(sequence, sequence.computed, count, count == left))
            budget -= count

    def _keys_ahead(self, sequence: Sequence, count: int) -> list[bytes]:
        """Keys of the whole blocks of the prompt that the next `count` rows write into."""
        if not self.limits.prefix_cache:
            return []
        size = self.limits.block_tokens
        first, last = sequence.computed // size, (sequence.computed + count - 1) // size
        whole = min(last + 1, self._shareable(sequence))
        return [sequence.key(index, size) for index in range(first, whole)]

    def _shareable(self, sequence: Sequence) -> int:
        """Leading blocks that may be another's: the newest token's row must be computed here."""
        return (len(sequence.tokens) - 1) // self.limits.block_tokens

    def _take_over(self, sequence: Sequence) -> None:
        """Put remembered blocks in the place of those that are still to be computed."""
        if not self.limits.prefix_cache:
            return
        size = self.limits.block_tokens
        for index in range(sequence.computed // size, self._shareable(sequence)):
            block = self.blocks.hold(sequence.key(index, size))
            if block is None:
                return
            if index < len(sequence.blocks):
                self.blocks.free([sequence.blocks[index]])
                sequence.blocks[index] = block
                self.table_LW[sequence.lane, index] = block
            else:  # not admitted yet
                sequence.blocks.append(block)
            self.prompt_tokens_reused += (index + 1) * size - sequence.computed
            sequence.computed = (index + 1) * size
            sequence.remembered = max(sequence.remembered, index + 1)

    def _admit(self) -> None:
        """Give lanes and blocks to waiting requests in line, leaving a block per running one."""
        while self._waiting:
            sequence = self._waiting[0]
            if self._lanes and self._place_in_memory(sequence):
                self._waiting.pop(0)
                self._give_lane(sequence)
            elif self._running and _priority(self._running[-1]) > _priority(sequence):
                self._preempt(self._running[-1])
            else:
                return

    def _give_lane(self, sequence: Sequence) -> None:
        sequence.lane = self._lanes.pop()
        self.table_LW[sequence.lane, : len(sequence.blocks)] = sequence.blocks
        insort(self._running, sequence, key=_place)
        sequence.is_reading = not sequence.is_decoding
        if sequence.is_reading:
            self._prompts.append(sequence)

    def _place_in_memory(self, sequence: Sequence) -> bool:
        """Take the blocks that a waiting sequence needs, or none at all."""
        reused = self.prompt_tokens_reused
        self._take_over(sequence)
        need = self._blocks_for(len(sequence.tokens)) - len(sequence.blocks)
        enough = self.blocks.free_count >= need + len(self._running)
        taken = self.blocks.allocate(need) if enough else None
        if taken is None:
            self.blocks.free(sequence.blocks)
            self.prompt_tokens_reused = reused
            _start_over(sequence)
            return False
        sequence.blocks += taken
        return True

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
        insort(self._waiting, victim, key=_place)

    def preempt_blocks_from(self, first: int) -> None:
        """Preempt every request that holds a block numbered `first` or above (before a shrink)."""
        for sequence in reversed(list(self._running)):
            if any(block >= first for block in sequence.blocks):
                self._preempt(sequence)

    def move_blocks_from(self, first: int) -> dict[int, int]:
        """Let requests hold lower blocks in the place of those from `first` on, as far as possible.

        Returns old -> new; the caller copies the content before the next plan.
        """
        moved = self.blocks.relocate(first)
        for sequence in self._running if moved else ():
            sequence.blocks = [moved.get(block, block) for block in sequence.blocks]
            self.table_LW[sequence.lane, : len(sequence.blocks)] = sequence.blocks
        return moved

    def end_unplaceable(self) -> None:
        """After a shrink: end waiting requests whose tokens no longer fit the whole pool."""
        for sequence in self._waiting:
            if self._blocks_for(len(sequence.tokens)) > self.blocks.total:
                sequence.cancelled = sequence.cancelled or "error:the KV pool became too small"

    # ---- progress ------------------------------------------------------------------------------

    def complete_step(
        self, plan: StepPlan, sampled: list[int], likelihoods: list[Likelihood | None] | None = None
    ) -> StepResult:
        """Record that a plan ran; `sampled` holds one token per sampling item, in order."""
        tokens: list[TokenOut] = []
        dones: list[DoneOut] = []
        draw = iter(zip(sampled, likelihoods or [None] * len(sampled), strict=True))
        for item in plan.items:
            sequence = item.sequence
            token, likelihood = next(draw) if item.samples else (-1, None)
            if sequence.lane < 0 or sequence.cancelled:
                continue
            sequence.computed = item.start + item.count
            self._remember(sequence)
            if item.samples:
                sequence.tokens.append(token)
                index = sequence.generated - 1
                tokens.append(TokenOut(sequence.request.id, index, token, likelihood))
                reason = self._ended(sequence)
                if reason:
                    dones.append(DoneOut(sequence.request.id, reason))
                    self._forget(sequence)
                    continue
            if sequence.is_reading:
                self._prompts.remove(sequence)
                sequence.is_reading = not sequence.is_decoding
                if sequence.is_reading:
                    self._prompts.append(sequence)
        return StepResult(tuple(tokens), (*dones, *self.drain_dones()))

    def _remember(self, sequence: Sequence) -> None:
        """Offer the blocks that are complete now to the prefix cache."""
        if not self.limits.prefix_cache:
            return
        size = self.limits.block_tokens
        for index in range(sequence.remembered, sequence.computed // size):
            self.blocks.remember(sequence.blocks[index], sequence.key(index, size))
            sequence.remembered = index + 1

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
        if sequence.is_reading:
            self._prompts.remove(sequence)
            sequence.is_reading = False
        self.blocks.free(sequence.blocks)
        self._lanes.append(sequence.lane)
        sequence.lane = -1
        _start_over(sequence)

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_tokens)


def _start_over(sequence: Sequence) -> None:
    sequence.blocks, sequence.computed, sequence.remembered = [], 0, 0
    sequence.starts += 1


def _place(sequence: Sequence) -> tuple[int, int]:
    return sequence.place


def _priority(sequence: Sequence) -> int:
    """Lower comes first."""
    return -sequence.request.priority
