"""Does the long-context model meet what others published? Published points, none of them fitted.

Each anchor is a published figure of an exact system, predicted from shapes and data sheets alone.
Where a publication leaves something open (a prompt length, a board power), the assumption stands
with the anchor.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .chunks import equal_time_chunks
from .constants import Constants
from .hardware import Hardware, override
from .layouts import Layout
from .long_context import (
    ATTENTION_SHARE,
    LINK_SHARE,
    PRODUCT_SHARE,
    chunk_cost,
    long_prefill,
)
from .model_facts import ModelShape
from .quantities import PRECISIONS

MILLION = 1_000_000
K128 = 131_072
# The published utilisation (63 %) and time of the context-parallel runs imply power-capped boards.
CAPPED_FLOPS = 800e12
GATHERED = 0.5  # of dense attention: chosen rows come one by one, not in tiles
PIPELINE_PROMPTS = 16
# The stream of prompts behind the pipeline figures; neither length nor number is
# published.
PIPELINE_PROMPT = 32_768
# At 1M tokens the published sparse kernel is 27.8 times faster than dense attention. A head's
# budget is fixed, so its cost grows with the prompt and dense cost with its square: over a whole
# prefill the gain is half of that at the end.
SPARSE_GAIN_AT_END = 27.8


@dataclass(frozen=True, slots=True)
class Anchor:
    """A published figure and its prediction, in the same unit."""

    name: str
    published: float
    predicted: float
    unit: str
    assumption: str = ""

    @property
    def error(self) -> float:
        """Relative to the published figure."""
        return self.predicted / self.published - 1


def anchors(
    shapes: Mapping[str, ModelShape], devices: Mapping[str, Hardware], constants: Constants
) -> list[Anchor]:
    """All anchors; raises KeyError when a card or a device of the catalogue is missing."""
    return [
        *_context_parallel(shapes["llama-3.1-405b"], devices["h100"]),
        *_pipeline(shapes["deepseek-v3"], devices["h20"]),
        _layer(shapes["glm-5"], devices["b200"], constants),
        *_sparse(shapes["qwen2.5-14b-1m"], devices["h20"]),
    ]


def _context_parallel(shape: ModelShape, hardware: Hardware) -> list[Anchor]:
    layout, precision = Layout(tp=8, cp=16), PRECISIONS["bf16"]
    points = (("1M", MILLION, 77.0), ("128K", K128, 3.8))
    capped = override(hardware, flops=(("bf16", CAPPED_FLOPS),))
    return [
        Anchor(
            f"Llama-3 405B, {name} prefill on 128 H100",
            published,
            long_prefill(shape, capped, layout, precision, tokens, tokens).ttft_s,
            "s",
            "boards of 800 Tflop/s",
        )
        for name, tokens, published in points
    ]


def _pipeline(shape: ModelShape, hardware: Hardware) -> list[Anchor]:
    """Throughput of a batch of prompts: filling is paid once, the widest stage sets the pace."""
    precision, n = PRECISIONS["fp8"], PIPELINE_PROMPT
    note = f"assumed: {PIPELINE_PROMPTS} prompts of {n} tokens; neither is published"

    def seconds(tp: int, stages: int) -> float:
        cost = chunk_cost(shape, hardware, Layout(tp=tp, ep=tp), precision)
        widest = -(-shape.layers // stages) / shape.layers
        parts = equal_time_chunks(cost, n, -(-n // 12_288))
        prefix, times = 0, []
        for part in parts:
            times.append(cost.seconds(prefix, part) * widest)
            prefix += part
        # All stages take a job equally long, so the last one ends after every job once, and the
        # filling of the other stages with the longest.
        return sum(times) * PIPELINE_PROMPTS + (stages - 1) * max(times)

    alone = seconds(8, 1)
    name = "DeepSeek-V3.1 H20"
    return [
        Anchor(f"{name}, PP4 x TP8 over TP8", 3.31, alone / seconds(8, 4), "x", note),
        Anchor(f"{name}, TP32 over TP8", 2.54, alone / seconds(32, 1), "x", note),
    ]


def _layer(shape: ModelShape, hardware: Hardware, constants: Constants) -> Anchor:
    """One layer of GLM-5 with eight context ranks: attention on a share of the tokens, experts on
    all of them, hidden states gathered before and reduced after."""
    tokens, ranks = 32_768, 8
    group = next(g for g in shape.groups if g.feed_forward.experts)
    a, mlp = group.attention, group.feed_forward
    mine = tokens / ranks
    bf16, fp8, fp4 = (hardware.peak(kind) for kind in ("bf16", "fp8", "fp4"))
    projections = 2 * mine * (a.parameters + mlp.dense_parameters) / (bf16 * PRODUCT_SHARE)
    selector = 2 * mine * a.index_cost * tokens / 2 / (fp8 * ATTENTION_SHARE)
    met = a.met(tokens)
    absorbed = 2 * a.kv_elements  # chosen rows differ by query, so heads meet the latent row itself
    chosen = 2 * mine * a.heads * absorbed * met / (bf16 * ATTENTION_SHARE * GATHERED)
    pairs = tokens * mlp.per_token / ranks
    share = constants.of("prefill_expert", "") * constants.of("fp4_math", "")
    experts = 2 * pairs * mlp.expert_parameters * constants.of("skew", "") / (fp4 * share)
    row_bytes = tokens * shape.hidden * 2 * (ranks - 1) / ranks
    moved = 2 * row_bytes / (hardware.tier_of(ranks).bytes_per_s * LINK_SHARE)
    total = projections + selector + chosen + experts + moved
    return Anchor("GLM-5 NVFP4, one layer, cp 8, 32K", 7470.0, total * 1e6, "us", "8 x B200")


def _sparse(shape: ModelShape, hardware: Hardware) -> list[Anchor]:
    layout = Layout(tp=8)
    plan = long_prefill(shape, hardware, layout, PRECISIONS["bf16"], MILLION, 32_768)
    rest = plan.ttft_s - plan.attention_s
    sparse = rest + plan.attention_s / (SPARSE_GAIN_AT_END / 2)
    name = "Qwen2.5-14B-1M, 1M prefill on 8 H20"
    return [
        Anchor(f"{name}, dense", 732.0, plan.ttft_s, "s"),
        Anchor(f"{name}, sparse", 109.0, sparse, "s"),
    ]
