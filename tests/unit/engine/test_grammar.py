"""Constrained requests end in text that their schema allows, whatever the model would say."""

import json
import re

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from moectl.agents.engine import local
from moectl.agents.engine.engine import EngineRefused, Limits
from moectl.agents.engine.grammar import TEXT_BYTES_MAX, Grammars
from moectl.agents.engine.request import Grammar, Request, Sampling
from moectl.core.errors import EngineError

EOS = 256
SCHEMA = {
    "type": "object",
    "properties": {
        "ok": {"type": "boolean"},
        "kind": {"enum": ["wide", "narrow"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "more": {"type": "array", "items": {"type": "null"}, "maxItems": 2},
    },
    "required": ["ok", "kind", "n", "more"],
    "additionalProperties": False,
}
JSON_GRAMMAR = Grammar("json_schema", json.dumps(SCHEMA))
LIMITS = Limits(max_batch_tokens=32, prefill_chunk=8, max_context=256, block_tokens=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model over bytes, and the tokenizer of bytes."""
    path = tmp_path_factory.mktemp("bytes")
    torch.manual_seed(4)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2}
    config = Qwen3MoeConfig(
        vocab_size=264,
        num_experts=4,
        moe_intermediate_size=16,
        max_position_embeddings=256,
        initializer_range=0.2,
        eos_token_id=EOS,
        pad_token_id=None,
        **sizes,
        **heads,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    assert tokenizer.token_to_id("<end>") == EOS
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def parts(folder):
    return local.open_forward(folder)


def run(engine, moe, request):
    engine.submit(request)
    tokens = []
    while engine.has_work:
        result = engine.run(engine.plan(), moe)
        tokens += [token.token for token in result.tokens]
        reasons = [done.reason for done in result.dones]
    return tokens, reasons


def request(grammar, temperature=1.0, seed=0, already=()):
    sampling = Sampling(temperature, seed=seed, grammar=grammar)
    return Request("a", (1, 2, 3), 200, sampling, (EOS,), already)


def text_of(folder, tokens):
    return Tokenizer.from_file(str(folder / "tokenizer.json")).decode(tokens)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_a_schema_is_kept_by_a_model_that_knows_nothing(folder, parts, temperature):
    for seed in range(4):
        engine = local.open_engine(parts[0], LIMITS, 64, folder=folder)
        tokens, reasons = run(engine, parts[1], request(JSON_GRAMMAR, temperature, seed))
        value = json.loads(text_of(folder, tokens))
        assert value.keys() == SCHEMA["properties"].keys()
        assert value["kind"] in ("wide", "narrow") and 0 <= value["n"] <= 99
        assert reasons == ["stop"] and tokens[-1] == EOS
        assert not engine._matchers


def test_a_regular_expression_is_kept(folder, parts):
    engine = local.open_engine(parts[0], LIMITS, 64, folder=folder)
    grammar = Grammar("regex", "[a-f]{3}-[0-9]{2}")
    tokens, reasons = run(engine, parts[1], request(grammar, seed=9))
    assert re.fullmatch("[a-f]{3}-[0-9]{2}", text_of(folder, tokens)) and reasons == ["stop"]


def test_a_replay_goes_on_inside_the_grammar_with_the_same_tokens(folder, parts):
    engine = local.open_engine(parts[0], LIMITS, 64, folder=folder)
    whole, _ = run(engine, parts[1], request(JSON_GRAMMAR, seed=2))
    for cut in (1, len(whole) // 2, len(whole) - 1):
        again = local.open_engine(parts[0], LIMITS, 64, folder=folder)
        rest, reasons = run(again, parts[1], request(JSON_GRAMMAR, 1.0, 2, tuple(whole[:cut])))
        assert whole[:cut] + rest == whole and reasons == ["stop"]


def test_a_failed_step_leaves_the_grammar_where_it_was(folder, parts):
    engine = local.open_engine(parts[0], LIMITS, 64, folder=folder)
    expected, _ = run(engine, parts[1], request(JSON_GRAMMAR, seed=2))
    fails, tokens = local.open_engine(parts[0], LIMITS, 64, folder=folder), []

    class Breaks:
        def run(self, *_):
            raise EngineError("a peer is gone")

    fails.submit(request(JSON_GRAMMAR, seed=2))
    while fails.has_work:
        with pytest.raises(EngineError):
            fails.run(fails.plan(), Breaks())
        tokens += [token.token for token in fails.run(fails.plan(), parts[1]).tokens]
    assert tokens == expected


@pytest.mark.parametrize(
    ("grammar", "eos", "why"),
    [
        (Grammar("json_schema", "{"), (EOS,), "cannot be read"),
        (Grammar("json_schema", '{"type": "nonsense"}'), (EOS,), "not supported|cannot be read"),
        (Grammar("regex", "("), (EOS,), "not supported|cannot be read"),
        (Grammar("poem", "x"), (EOS,), "no kind of grammar"),
        (Grammar("regex", "a" * (TEXT_BYTES_MAX + 1)), (EOS,), "more than"),
        (JSON_GRAMMAR, (), "end-of-sequence"),
    ],
)
def test_a_grammar_that_cannot_be_followed_is_refused_with_the_reason(
    folder, parts, grammar, eos, why
):
    engine = local.open_engine(parts[0], LIMITS, 64, folder=folder)
    sampling = Sampling(grammar=grammar)
    with pytest.raises(EngineRefused, match=why):
        engine.submit(Request("a", (1,), 5, sampling, eos))
    assert not engine.has_work


def test_without_a_tokenizer_grammars_are_refused_and_all_else_runs(folder, parts, tmp_path):
    bare = local.open_engine(parts[0], LIMITS, 64)
    with pytest.raises(EngineRefused, match="no tokenizer"):
        bare.submit(request(JSON_GRAMMAR))
    with pytest.raises(EngineRefused, match=r"tokenizer\.json"):
        Grammars(tmp_path, 264).matcher(JSON_GRAMMAR, (EOS,))


def test_tokens_without_text_are_never_allowed(folder):
    allowed = Grammars(folder, 264).matcher(Grammar("regex", ".*"), (EOS,)).allowed()
    assert allowed.shape == (264,) and allowed.dtype == np.bool_
    assert allowed[EOS] and not allowed[257:].any()
