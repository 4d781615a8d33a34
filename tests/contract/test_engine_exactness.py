"""The engine against transformers itself, and against itself in other company.

Every family whose experts share the interface gives the tokens of `generate`, which takes one
request at a time, while the engine runs them together, arriving one by one, in chunks, over
scattered blocks whose unwritten part is NaN. And a row's logits have the same bits whoever its
neighbours are.
"""

import numpy as np
import pytest
import torch
from moe_families import FAMILIES
from transformers import AutoModelForCausalLM

from moectl.agents.engine import local
from moectl.agents.engine.engine import Engine, Limits
from moectl.agents.engine.moe import LocalMoe
from moectl.agents.engine.request import Request, Sampling
from moectl.agents.engine.warm_up import warm_up
from moectl.kernels import native

LENGTHS = (5, 33, 18, 1, 50)
NEW_TOKENS = 12


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Family name -> a saved random model."""
    made = {}

    def folder(family):
        if family not in made:
            torch.manual_seed(7)
            made[family] = tmp_path_factory.mktemp(family)
            AutoModelForCausalLM.from_config(FAMILIES[family]()).save_pretrained(made[family])
        return made[family]

    return folder


@pytest.fixture(scope="module")
def qwen3(folders):
    return local.open_forward(folders("qwen3"))


def prompts():
    random = np.random.RandomState(3)
    return [tuple(random.randint(3, 256, length).tolist()) for length in LENGTHS]


def generate(folder, prompt, new_tokens=NEW_TOKENS):
    """The tokens that transformers gives for one prompt alone."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([prompt])
    out = model.generate(ids, max_new_tokens=new_tokens, do_sample=False, eos_token_id=2)
    return out[0, len(prompt) :].tolist()


def scattered(blocks, seed):
    return np.random.RandomState(seed).permutation(blocks).tolist()


def run_all(engine: Engine, moe: LocalMoe, requests, arrive_every=0):
    """Tokens by request id; request i arrives before step i * arrive_every."""
    out, waiting, step = {request.id: [] for request in requests}, list(requests), 0
    while waiting or engine.has_work:
        while waiting and step >= arrive_every * (len(requests) - len(waiting)):
            engine.submit(waiting.pop(0))
        plan = engine.plan()
        step += 1
        if plan is None:
            engine.drain_dones()
            continue
        for token in engine.run(plan, moe).tokens:
            assert token.index == len(out[token.request_id])
            out[token.request_id].append(token.token)
    engine.blocks.check()
    assert engine.stats().kv_blocks_used == 0
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_a_warmed_up_rank_has_written_no_kv_and_computed_every_layer(folders, family):
    forward, moe = local.open_forward(folders(family))
    engine = local.open_engine(forward, Limits(max_context=256, block_tokens=8), 16)
    seen = _Counted(moe.slots)
    warm_up(engine, seen)
    assert torch.isnan(engine.kv.layers[0]).all()
    assert torch.isnan(engine.kv.layers[-1]).all()
    assert seen.layers == list(range(len(forward.shape.moe_layers)))
    assert engine.stats().steps == 0


class _Counted:
    """Expert slots that note which layers were computed."""

    def __init__(self, slots):
        self._slots, self.slot_of, self.layers = slots, slots.slot_of, []

    def compute(self, layer, x_NH, row_P, expert_P):
        self.layers.append(layer)
        return self._slots.compute(layer, x_NH, row_P, expert_P)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_generate(folders, family):
    folder = folders(family)
    forward, moe = local.open_forward(folder)
    limits = Limits(max_batch_tokens=24, prefill_chunk=7, max_context=512)
    engine = local.open_engine(forward, limits, 32, scattered(32, 1))
    requests = [
        Request(str(i), prompt, NEW_TOKENS, eos_ids=(2,)) for i, prompt in enumerate(prompts())
    ]
    got = run_all(engine, moe, requests, arrive_every=2)
    for i, prompt in enumerate(prompts()):
        assert got[str(i)] == generate(folder, prompt), f"{family}, prompt {i}"
    assert len({token for tokens in got.values() for token in tokens}) > 5


def test_experts_in_scattered_slots_change_no_token(folders, qwen3):
    forward, moe = qwen3
    state = AutoModelForCausalLM.from_pretrained(folders("qwen3")).state_dict()
    other = LocalMoe(local.slots_from_state(forward.template, state, scattered(16, 5)))
    limits = Limits(max_context=512)
    requests = [Request(str(i), prompt, 6) for i, prompt in enumerate(prompts())]
    first = run_all(local.open_engine(forward, limits, 32), moe, requests)
    assert run_all(local.open_engine(forward, limits, 32), other, requests) == first


class Recorded:
    """A forward pass that keeps the logits of every sampled row, by request and token index."""

    def __init__(self, forward):
        self.forward = forward
        self.shape = forward.shape
        self.seen = {}
        self.plan = None

    def run(self, batch, moe, kv):
        logits_SV = self.forward.run(batch, moe, kv)
        items = [item for item in self.plan.items if item.samples]
        for row, item in enumerate(items):
            key = item.sequence.request.id, item.sequence.generated
            self.seen[key] = logits_SV[row].clone()
        return logits_SV


def logits_of(forward, moe, requests, limits, seed, arrive_every=0):
    """Logits by (request, index)."""
    engine = local.open_engine(forward, limits, 32, scattered(32, seed))
    return recorded_logits(engine, moe, requests, arrive_every)


def recorded_logits(engine, moe, requests, arrive_every=0):
    recorded = Recorded(engine.forward)
    engine.forward = recorded
    plan_step = engine.plan

    def plan():
        recorded.plan = plan_step()
        return recorded.plan

    engine.plan = plan
    run_all(engine, moe, requests, arrive_every)
    return recorded.seen


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(
    "family",
    [
        "qwen3-tied-window",
        "qwen2",
        "mixtral-tied-window",
        "olmoe-clip-tied-norm",
        "deepseek2-grouped-tied-yarn",
        "deepseek3",
        "gpt-oss-tied-yarn-clip",
    ],
)
def test_logits_have_the_same_bits_in_any_company(folders, family, backend, monkeypatch):
    if backend == "reference":
        monkeypatch.setattr(native, "extension", None)
    elif native.extension is None:
        pytest.skip("the compiled path is not built")
    forward, moe = local.open_forward(folders(family))
    requests = [Request(str(i), prompt, 6) for i, prompt in enumerate(prompts())]
    chunked = Limits(max_batch_tokens=24, prefill_chunk=7, max_context=512)
    whole = Limits(max_batch_tokens=300, prefill_chunk=300, max_context=512)
    together = logits_of(forward, moe, requests, whole, seed=1)
    staggered = logits_of(forward, moe, requests, chunked, seed=2, arrive_every=3)
    alone = {}
    for request in requests:
        alone |= logits_of(forward, moe, [request], chunked, seed=3)
    assert together.keys() == staggered.keys() == alone.keys()
    for key, logits in together.items():
        assert torch.equal(logits, staggered[key]), key
        assert torch.equal(logits, alone[key]), key


def test_a_replay_continues_with_the_tokens_it_would_have_had(qwen3):
    forward, moe = qwen3
    limits = Limits(max_context=512)
    warm = Sampling(temperature=0.8, top_p=0.9, top_k=40, seed=11)
    requests = [Request(f"{i}", p, 10, warm) for i, p in enumerate(prompts())]
    whole = run_all(local.open_engine(forward, limits, 32), moe, requests)
    assert len(set(whole["0"])) > 1
    for cut in (1, 4, 9):
        engine = local.open_engine(forward, limits, 32)
        tail = []
        for request in requests[:2]:
            already = tuple(whole[request.id][:cut])
            engine.submit(Request(request.id, request.prompt_ids, 10, warm, already=already))
        while engine.has_work:
            tail += engine.run(engine.plan(), moe).tokens
        for token in tail:
            assert token.token == whole[token.request_id][token.index]
        assert {t.index for t in tail if t.request_id == "0"} == set(range(cut, 10))


def test_preempted_requests_end_with_the_same_tokens(qwen3):
    forward, moe = qwen3
    limits = Limits(max_context=128, block_tokens=4, max_batch_tokens=32, prefill_chunk=8)
    requests = [Request(str(i), prompt[:20], 30) for i, prompt in enumerate(prompts())]
    roomy = run_all(local.open_engine(forward, limits, 200), moe, requests)
    tight_engine = local.open_engine(forward, limits, 16)
    assert run_all(tight_engine, moe, requests) == roomy
    assert tight_engine.stats().preemptions > 0


@pytest.mark.parametrize("family", ["qwen3-tied-window", "deepseek3", "gpt-oss"])
def test_shared_prefixes_change_no_bit_of_the_logits(folders, family):
    forward, moe = local.open_forward(folders(family))
    common = prompts()[4]
    requests = [Request(str(i), common[: 45 - i] + prompts()[i][:7], 6) for i in range(5)]
    seen = []
    for cached in (False, True):
        limits = Limits(24, prefill_chunk=7, max_context=512, block_tokens=4, prefix_cache=cached)
        engine = local.open_engine(forward, limits, 200)
        seen.append(recorded_logits(engine, moe, requests))
        assert (engine.stats().prompt_tokens_reused > 100) is cached
    without, shared = seen
    assert without.keys() == shared.keys()
    assert all(torch.equal(without[key], shared[key]) for key in without)


def test_a_repetition_penalty_gives_the_tokens_of_generate(folders, qwen3):
    forward, moe = qwen3
    model = AutoModelForCausalLM.from_pretrained(folders("qwen3")).eval()
    penal = Sampling(repetition_penalty=1.7)
    requests = [Request(str(i), prompt, 12, penal) for i, prompt in enumerate(prompts())]
    got = run_all(local.open_engine(forward, Limits(max_context=512), 64), moe, requests)
    for i, prompt in enumerate(prompts()):
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, max_new_tokens=12, do_sample=False, repetition_penalty=1.7, eos_token_id=-1
        )
        assert got[str(i)] == out[0, len(prompt) :].tolist()


def test_log_probabilities_are_those_of_the_model(folders, qwen3):
    forward, moe = qwen3
    model = AutoModelForCausalLM.from_pretrained(folders("qwen3")).eval()
    prompt = prompts()[1]
    engine = local.open_engine(forward, Limits(max_context=512), 64)
    engine.submit(Request("a", prompt, 5, Sampling(logprobs=4)))
    told = []
    while engine.has_work:
        told += engine.run(engine.plan(), moe).tokens
    ids = torch.tensor([[*prompt, *(each.token for each in told)]])
    with torch.no_grad():
        log_TV = torch.log_softmax(model(ids).logits[0].double(), -1)
    for each in told:
        log_V = log_TV[len(prompt) - 1 + each.index]
        assert each.likelihood.drawn == pytest.approx(float(log_V[each.token]), abs=1e-4)
        assert [token for token, _ in each.likelihood.top] == log_V.topk(4).indices.tolist()
