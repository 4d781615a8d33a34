"""One rank's engine: what runs next, run it, and say what came out.

Composes scheduler, forward pass, KV and sampling; knows no process group, no socket and no clock.
Whoever owns it (the worker's loop, a test) calls `plan`, then `run` with the MoeRunner of the
epoch in force. A `run` that raises (a peer is gone) has changed nothing but KV positions that the
next run rewrites: call `plan` again and go on.
"""

from dataclasses import dataclass

from ...core.errors import InvariantError
from .batch import build_batch
from .kv import BlockAllocator, KvPool
from .model import ForwardPass
from .moe import MoeRunner
from .request import DoneOut, DoneReason, Request, StepResult
from .sampling import draw
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


class Engine:
    """Owned by one thread."""

    def __init__(
        self,
        forward: ForwardPass,
        kv: KvPool,
        limits: Limits,
        blocks: BlockAllocator | None = None,
    ) -> None:
        if kv.block_tokens != limits.block_tokens:
            raise InvariantError(
                f"KV blocks of {kv.block_tokens} tokens, not {limits.block_tokens}"
            )
        self.forward = forward
        self.kv = kv
        self.blocks = blocks or BlockAllocator(kv.blocks)
        self.scheduler = Scheduler(limits, self.blocks)
        self._steps = 0
        self._rows = 0
        self._tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether `plan` or `drain_dones` would give something."""
        return self.scheduler.has_work

    def submit(self, request: Request) -> None:
        """Queue a request. Raises EngineRefused (its text is the reason to send)."""
        vocab = self.forward.shape.vocab
        for token in (*request.prompt_ids, *request.already):
            if not 0 <= token < vocab:
                raise EngineRefused(f"token {token} is outside the vocabulary of {vocab}")
        self.scheduler.submit(request)

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
        plans = [
            (item.sequence.request.sampling, item.sequence.generated)
            for item in plan.items
            if item.samples
        ]
        result = self.scheduler.complete_step(plan, draw(logits_SV, plans))
        self._steps += 1
        self._rows += plan.row_count
        self._tokens += len(result.tokens)
        return result

    def run_idle(self, moe: MoeRunner) -> None:
        """Keep step with the other ranks when this one has no rows."""
        self.forward.idle(moe)

    def drain_dones(self) -> tuple[DoneOut, ...]:
        """Ends that no step will report (cancelled while nothing runs)."""
        return self.scheduler.drain_dones()

    def grow_kv(self, blocks: int) -> None:
        """`blocks` more KV blocks are mapped now."""
        self.kv.grow(blocks)
        self.blocks.grow(blocks)

    def shrink_kv(self, blocks: int) -> None:
        """Give the last `blocks` KV blocks up; requests in them are computed again elsewhere."""
        self.scheduler.preempt_blocks_from(self.blocks.total - blocks)
        self.blocks.shrink(blocks)
        self.kv.shrink(blocks)
        self.scheduler.end_unplaceable()

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
        )
