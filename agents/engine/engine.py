"""One rank's engine: what runs next, run it, and say what came out.

Composes scheduler, forward pass, KV and sampling; knows no process group, no socket and no clock.
Whoever owns it (the worker's loop, a test) calls `plan`, then `run` with the MoeRunner of the
epoch in force. A `run` that raises (a peer is gone) has changed nothing but KV positions that the
next run rewrites: call `plan` again and go on.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...core.errors import InvariantError
from .batch import build_batch
from .grammar import Grammars, Matcher
from .incoming import Incoming
from .kv import BlockAllocator, KvPool
from .model import ForwardPass
from .moe import MoeRunner
from .progress import Sequence, blocks_to_finish
from .request import DoneOut, DoneReason, Request, StepResult
from .sampling import Draw, draw
from .schedule import EngineRefused, Limits, Scheduler, StepPlan

__all__ = ["Engine", "EngineRefused", "EngineStats", "Limits", "StepPlan"]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts since the start, and what is held now."""

    running: int
    waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    steps: int
    rows: int
    tokens: int
    preemptions: int
    prompt_tokens_reused: int = 0
    kv_blocks_remembered: int = 0


class Engine:
    """Owned by one thread."""

    def __init__(
        self,
        forward: ForwardPass,
        kv: KvPool,
        limits: Limits,
        blocks: BlockAllocator | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        if kv.block_tokens != limits.block_tokens:
            raise InvariantError(
                f"KV blocks of {kv.block_tokens} tokens, not {limits.block_tokens}"
            )
        self.forward = forward
        self.kv = kv
        self.blocks = blocks or BlockAllocator(kv.blocks)
        self.scheduler = Scheduler(limits, self.blocks)
        self.incoming = Incoming(self.blocks)
        self._grammars = grammars
        self._matchers: dict[str, Matcher] = {}
        self._steps = 0
        self._rows = 0
        self._tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether `plan` or `drain_dones` would give something."""
        return self.scheduler.has_work

    def submit(self, request: Request) -> None:
        """Queue a request. Raises EngineRefused (its text is the reason to send)."""
        self._take(request, self.scheduler.submit)

    def adopt(self, request: Request, computed: int) -> None:
        """Go on with a request of another rank, whose KV stands in the blocks held for it.

        Its tokens so far are `request.already`, of all its tokens the first `computed` have KV; one
        without any KV is queued. Raises EngineRefused as `submit`; then the blocks are still held.
        """
        if not computed:
            self.submit(request)
            self.incoming.drop(request.id)
            return
        blocks = self.incoming.blocks_of(request.id)
        self._take(request, lambda checked: self.scheduler.adopt(checked, computed, blocks))
        self.incoming.take(request.id)

    def _take(self, request: Request, take: Callable[[Request], None]) -> None:
        vocab, sampling = self.forward.shape.vocab, request.sampling
        biased = [token for token, _ in sampling.logit_bias]
        for token in (*request.prompt_ids, *request.already, *biased):
            if not 0 <= token < vocab:
                raise EngineRefused(f"token {token} is outside the vocabulary of {vocab}")
        if sampling.grammar is None:
            take(request)
            return
        if self._grammars is None:
            raise EngineRefused("this engine has no tokenizer, so it cannot follow a grammar")
        matcher = self._grammars.matcher(sampling.grammar, request.eos_ids, request.already)
        take(request)
        self._matchers[request.id] = matcher

    def cancel(self, request_id: str, reason: str = DoneReason.CANCELLED) -> bool:
        """End a request before the next plan; its DoneOut comes with the next result or drain."""
        return self.scheduler.cancel(request_id, reason)

    def plan(self) -> StepPlan | None:
        """The next step, or None when no row can run."""
        return self.scheduler.plan_step()

    def run(self, plan: StepPlan, moe: MoeRunner) -> StepResult:
        """Run a plan and record it. Raises what `moe.run` raises, with nothing recorded."""
        batch = build_batch(plan, self.scheduler.table_LW)
        logits_SV = self.forward.run(batch, moe, self.kv)
        drawn = draw(logits_SV, [self._draw(item.sequence) for item in plan.items if item.samples])
        result = self.scheduler.complete_step(plan, drawn.tokens, drawn.likelihoods)
        self._follow(result)
        self._steps += 1
        self._rows += plan.row_count
        self._tokens += len(result.tokens)
        return result

    def _draw(self, sequence: Sequence) -> Draw:
        request, index = sequence.request, sequence.generated
        if request.sampling.is_plain:
            return Draw(request.sampling, index)
        matcher = self._matchers.get(request.id)
        return Draw(
            request.sampling,
            index,
            request.prompt_ids,
            sequence.tokens[len(request.prompt_ids) :],
            matcher.allowed() if matcher is not None else None,
        )

    def _follow(self, result: StepResult) -> None:
        """Move the matchers behind what became final."""
        if not self._matchers:
            return
        for token in result.tokens:
            matcher = self._matchers.get(token.request_id)
            if matcher is not None:
                matcher.accept(token.token)
        for done in result.dones:
            self._matchers.pop(done.request_id, None)

    def run_idle(self, moe: MoeRunner) -> None:
        """Keep step with the other ranks when this one has no rows."""
        self.forward.idle(moe)

    def drain_dones(self) -> tuple[DoneOut, ...]:
        """Ends that no step will report (cancelled while nothing runs)."""
        dones = self.scheduler.drain_dones()
        self._follow(StepResult((), dones))
        return dones

    def kv_blocks_to_finish(self) -> int:
        """The most KV blocks that the requests here can come to hold."""
        return blocks_to_finish(self.scheduler.sequences.values(), self.scheduler.limits)

    def grow_kv(self, blocks: int) -> None:
        """`blocks` more KV blocks are mapped now."""
        self.kv.grow(blocks)
        self.blocks.grow(blocks)

    def shrink_kv(self, blocks: int) -> None:
        """Give the last `blocks` KV blocks up: what is in them moves to lower ones.

        Requests whose blocks find no place there are computed again later.
        """
        first = self.blocks.total - blocks
        moved = self.scheduler.move_blocks_from(first)
        for old, new in moved.items():
            self.kv.copy(old, new)
        self.incoming.move(moved)
        self.incoming.drop_from(first)
        self.scheduler.preempt_blocks_from(first)
        self.blocks.shrink(blocks)
        self.kv.shrink(blocks)
        self.scheduler.end_unplaceable()

    def take_settings(self, limits: Limits, threads: int) -> None:
        """Other budgets, and threads of arithmetic, from the next plan on.

        Raises InvariantError when blocks or context would change: memory is laid out by these.
        """
        old = self.scheduler.limits
        if (limits.block_tokens, limits.max_context) != (old.block_tokens, old.max_context):
            raise InvariantError("block and context sizes cannot change under an engine")
        self.scheduler.set_limits(limits)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    def stats(self) -> EngineStats:
        """A snapshot."""
        return EngineStats(
            running=self.scheduler.running_count,
            waiting=self.scheduler.waiting_count,
            kv_blocks_used=self.blocks.used_count,
            kv_blocks_total=self.blocks.total,
            steps=self._steps,
            rows=self._rows,
            tokens=self._tokens,
            preemptions=self.scheduler.preemptions,
            prompt_tokens_reused=self.scheduler.prompt_tokens_reused,
            kv_blocks_remembered=self.blocks.remembered_count,
        )
