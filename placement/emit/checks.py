"""Would the engine itself accept this command line? Its own start-up checks, on the words.

What an engine refuses at start is refused here first, by the same rule and with the numbers, so
that an export never ends in a crash loop. It reads the finished words, not the plan they were made
from: a slip in the writing is found like a slip in the plan.

Rules of vLLM and SGLang as their argument checks and weight loaders state them; a rule that needs
the checkpoint's files is not here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...core.errors import RefusedError
from ..model_facts import ModelShape
from ..quantities import Precision

BLOCK = 128  # of fp8 weights scaled in blocks; a rank's slice is whole blocks
Words = Sequence[str]


def number(words: Words, flag: str, default: int) -> int:
    """The whole number after a flag; the engine's default where the flag is absent."""
    return int(words[list(words).index(flag) + 1]) if flag in words else default


@dataclass(frozen=True, slots=True)
class Check:
    """One rule: what is wrong with these words, "" when nothing is."""

    name: str
    wrong: Callable[[Words, ModelShape, Precision], str]


def _vllm_heads(words: Words, shape: ModelShape, _: Precision) -> str:
    tp = number(words, "--tensor-parallel-size", 1)
    if shape.heads % tp:
        return f"{shape.heads} attention heads do not divide over --tensor-parallel-size {tp}"
    if tp > shape.kv_heads and tp % shape.kv_heads:
        return f"--tensor-parallel-size {tp} is no multiple of {shape.kv_heads} kv heads"
    return ""


def _vllm_stages(words: Words, shape: ModelShape, _: Precision) -> str:
    pp = number(words, "--pipeline-parallel-size", 1)
    return f"{shape.layers} layers do not fill {pp} stages" if pp > shape.layers else ""


def _vllm_experts(words: Words, shape: ModelShape, _: Precision) -> str:
    is_spread = "--enable-expert-parallel" in words
    return "--enable-expert-parallel needs a model with experts" if is_spread > shape.is_moe else ""


def _vllm_context(words: Words, shape: ModelShape, _: Precision) -> str:
    asked = number(words, "--max-model-len", shape.context_tokens)
    if asked > shape.context_tokens:
        return f"--max-model-len {asked} is beyond the model's {shape.context_tokens}"
    return ""


def _vllm_batch(words: Words, shape: ModelShape, _: Precision) -> str:
    tokens = number(words, "--max-num-batched-tokens", 8192)
    sequences = number(words, "--max-num-seqs", 256)
    if tokens < sequences:
        return f"--max-num-batched-tokens {tokens} is below --max-num-seqs {sequences}"
    return ""


def _vllm_blocks(words: Words, shape: ModelShape, precision: Precision) -> str:
    if "--enable-expert-parallel" in words:
        return ""
    ranks = number(words, "--tensor-parallel-size", 1) * number(words, "--data-parallel-size", 1)
    return _split_blocks(shape, precision, ranks, "--tensor-parallel-size")


def _split_blocks(shape: ModelShape, precision: Precision, ranks: int, flag: str) -> str:
    if precision.name.partition("+")[0] != "fp8_block":
        return ""
    for group in shape.groups:
        inner = group.feed_forward.expert_inner
        if inner and (inner % ranks or inner // ranks % BLOCK):
            return f"expert width {inner} over {ranks} ranks ({flag}) is no whole block of {BLOCK}"
    return ""


def _sglang_heads(words: Words, shape: ModelShape, _: Precision) -> str:
    tp, dp = number(words, "--tp-size", 1), number(words, "--dp-size", 1)
    if "--enable-dp-attention" in words:
        if tp % dp:
            return f"--tp-size {tp} is no multiple of --dp-size {dp}"
        tp //= dp
    if shape.heads % tp:
        return f"{shape.heads} attention heads do not divide over {tp} attention ranks"
    return ""


def _sglang_experts(words: Words, shape: ModelShape, _: Precision) -> str:
    tp, ep = number(words, "--tp-size", 1), number(words, "--ep-size", 1)
    if tp % ep:
        return f"--tp-size {tp} is no multiple of --ep-size {ep}"
    if ep > 1 and (not shape.is_moe or shape.experts % ep):
        return f"{shape.experts} experts do not divide over --ep-size {ep}"
    return ""


def _sglang_stages(words: Words, shape: ModelShape, _: Precision) -> str:
    pp, dp = number(words, "--pp-size", 1), number(words, "--dp-size", 1)
    if pp > 1 and dp > 1:
        return f"--pp-size {pp} does not combine with --dp-size {dp}"
    return f"{shape.layers} layers do not fill {pp} stages" if pp > shape.layers else ""


def _sglang_context(words: Words, shape: ModelShape, _: Precision) -> str:
    asked = number(words, "--context-length", shape.context_tokens)
    if asked > shape.context_tokens:
        return f"--context-length {asked} is beyond the model's {shape.context_tokens}"
    return ""


def _sglang_blocks(words: Words, shape: ModelShape, precision: Precision) -> str:
    ranks = number(words, "--tp-size", 1) // max(1, number(words, "--ep-size", 1))
    return _split_blocks(shape, precision, ranks, "--tp-size over --ep-size")


CHECKS: dict[str, tuple[Check, ...]] = {
    "vllm": (
        Check("heads", _vllm_heads),
        Check("stages", _vllm_stages),
        Check("experts", _vllm_experts),
        Check("context", _vllm_context),
        Check("batch", _vllm_batch),
        Check("blocks", _vllm_blocks),
    ),
    "sglang": (
        Check("heads", _sglang_heads),
        Check("stages", _sglang_stages),
        Check("experts", _sglang_experts),
        Check("context", _sglang_context),
        Check("blocks", _sglang_blocks),
    ),
}


def check_words(engine: str, words: Words, shape: ModelShape, precision: Precision) -> None:
    """Raise RefusedError naming the rule that the engine would refuse a command line by."""
    for check in CHECKS.get(engine, ()):
        wrong = check.wrong(words, shape, precision)
        if wrong:
            raise RefusedError(
                f"{engine} would refuse this at start ({check.name}): {wrong}",
                next_step="plan with --engine to choose among layouts of one engine",
            )
