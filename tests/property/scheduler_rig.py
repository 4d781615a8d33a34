"""A scheduler over a dictionary for KV, and random loads for it.

The model is a pure function of a request's tokens so far, so every request has one right answer;
the KV is a dictionary from (block, position in it) to what was written there, so a plan that would
read what was never written, or another request's block, is caught.
"""

from collections import Counter
from random import Random

from hypothesis import settings
from hypothesis import strategies as st

from moectl.agents.engine.batch import build_batch
from moectl.agents.engine.kv import BlockAllocator
from moectl.agents.engine.request import DoneReason, Request
from moectl.agents.engine.schedule import Limits, Scheduler

EOS = 0
LAWS = settings(max_examples=60, deadline=None)


def next_token(tokens):
    """The model: any fixed function of the tokens; ends a request about once in twelve tokens."""
    return (sum((i + 1) * t for i, t in enumerate(tokens)) * 2654435761 >> 7) % 12


def right_answer(request, limits):
    tokens = list(request.prompt_ids)
    generated = []
    while True:
        generated.append(next_token(tokens + generated))
        if generated[-1] in request.eos_ids:
            return generated, DoneReason.STOP
        total = len(tokens) + len(generated)
        if len(generated) >= request.max_tokens or total >= limits.max_context:
            return generated, DoneReason.LENGTH


class Rig:
    """Runs plans against a dictionary for KV and checks each plan on the way."""

    def __init__(self, limits, blocks):
        self.limits = limits
        self.blocks = BlockAllocator(blocks)
        self.scheduler = Scheduler(limits, self.blocks)
        self.kv, self.tokens, self.dones = {}, {}, {}

    def step(self, fails=False):
        plan = self.scheduler.plan_step()
        self.blocks.check()
        if plan is None:
            self.note((), self.scheduler.drain_dones())
            return False
        assert 0 < plan.row_count <= self.limits.max_batch_tokens
        batch = build_batch(plan, self.scheduler.table_LW)
        sampled = self.forward(plan, batch)
        if not fails:
            result = self.scheduler.complete_step(plan, sampled)
            self.note(result.tokens, result.dones)
        return True

    def forward(self, plan, batch):
        paged, size = batch.paged, self.limits.block_tokens
        rows = range(batch.row_count)
        for row in rows:
            self.kv[self.place(paged, row, paged.position_T[row])] = batch.token_T[row]
        assert (paged.lane_T[batch.row_count :] == -1).all()
        sampled = []
        for row in batch.sample_S[: batch.sampled_count]:
            length = paged.position_T[row] + 1
            sampled.append(
                next_token([int(self.kv[self.place(paged, row, p)]) for p in range(length)])
            )
        held = Counter(block for each in self.scheduler._running for block in each.blocks)
        assert max(held) < self.blocks.total
        for item in plan.items:  # what is written belongs to one request alone
            last = (item.start + item.count - 1) // size
            written = item.sequence.blocks[item.start // size : last + 1]
            assert all(held[block] == 1 for block in written)
        return sampled

    def place(self, paged, row, position):
        size = self.limits.block_tokens
        return int(paged.table_LW[paged.lane_T[row], position // size]), int(position % size)

    def note(self, tokens, dones):
        for token in tokens:
            assert token.request_id not in self.dones
            got = self.tokens.setdefault(token.request_id, [])
            assert token.index == len(got)
            got.append(token.token)
        for done in dones:
            assert done.request_id not in self.dones
            self.dones[done.request_id] = done.reason

    def finish(self, most_steps):
        for _ in range(most_steps):
            if not self.scheduler.has_work:
                break
            self.step()
        assert not self.scheduler.has_work
        assert self.blocks.used_count == 0


def load(seed, count, longest):
    """Requests of which about half begin like another one; some are more urgent."""
    random = Random(seed)
    prompts = []
    for _ in range(count):
        begin = random.choice(prompts) if prompts and random.random() < 0.5 else ()
        own = tuple(random.randint(1, 11) for _ in range(random.randint(1, longest)))
        prompts.append((begin[: random.randint(0, 40)] + own)[:longest])
    return [
        Request(
            str(i),
            prompt,
            random.randint(1, 20),
            eos_ids=(EOS,),
            priority=random.choice((0, 0, 0, 1, 2)),
        )
        for i, prompt in enumerate(prompts)
    ]


budgets = st.builds(
    Limits,
    max_batch_tokens=st.integers(1, 40),
    max_requests=st.integers(1, 8),
    prefill_chunk=st.integers(1, 20),
    block_tokens=st.integers(1, 8),
    max_context=st.just(64),
    prefix_cache=st.sampled_from((True, True, False)),
)
