"""Which engine can run a layout, and what does it say about those that it cannot?

The engines' own checks, stated as they apply to a layout: what an engine would refuse at start is
refused here with the same reason, so that a plan never ends in a crash loop. Our own engine counts
as one of them: a plan for it chooses only among layouts that it can execute.
"""

from collections.abc import Callable

from ..executable import why_not_executable
from ..layouts import Layout, why_illegal
from ..model_facts import ModelShape


def why_not_vllm(shape: ModelShape, layout: Layout) -> str:
    """vLLM: experts are spread over all tp x dp ranks or over none; heads divide over tp."""
    if layout.cp > 1:
        return "this export writes no context-parallel flags for vLLM"
    if layout.ep not in (1, layout.tp * layout.dp):
        return f"vLLM spreads experts over all {layout.tp * layout.dp} ranks or none"
    if layout.dp > 1 and shape.is_moe and layout.ep == 1:
        return "vLLM's data-parallel attention over MoE layers needs expert parallelism"
    if shape.heads % layout.tp:
        return f"{shape.heads} attention heads do not divide over tp {layout.tp}"
    if layout.tp > shape.kv_heads and layout.tp % shape.kv_heads:
        return f"tp {layout.tp} neither divides nor is divided by {shape.kv_heads} kv heads"
    return ""


def why_not_sglang(shape: ModelShape, layout: Layout) -> str:
    """SGLang: one tp group over all ranks of a stage, dp and ep are divisions of it."""
    width = layout.tp * layout.dp
    if layout.cp > 1:
        return "this export writes no context-parallel flags for SGLang"
    if width % layout.ep:
        return f"ep {layout.ep} does not divide SGLang's tensor group of {width}"
    if layout.dp > 1 and layout.pp > 1:
        return "SGLang's data-parallel attention does not combine with pipeline stages"
    if layout.dp > 1 and not shape.is_moe:
        return "SGLang's data-parallel attention is for MoE models; use replicas instead"
    if shape.heads % layout.tp:
        return f"{shape.heads} attention heads do not divide over tp {layout.tp}"
    return ""


ENGINES: dict[str, Callable[[ModelShape, Layout], str]] = {
    "moectl": why_not_executable,
    "vllm": why_not_vllm,
    "sglang": why_not_sglang,
}


def why_not(engine: str, shape: ModelShape, layout: Layout) -> str:
    """The first reason why an engine cannot run a layout; "" when it can; KeyError: no such one."""
    return why_illegal(shape, layout) or ENGINES[engine](shape, layout)


def engines_for(shape: ModelShape, layout: Layout) -> tuple[str, ...]:
    """Engines that can run a layout."""
    return tuple(name for name in ENGINES if not why_not(name, shape, layout))
