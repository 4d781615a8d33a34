"""What is a parallel layout, and which ones does a model allow?

A layout describes one replica: `tp` ranks share each attention head group, `dp` attention replicas
stand beside each other, `pp` stages follow each other, `cp` ranks share one prompt's tokens; the
experts of a stage lie over the same tp x dp x cp ranks, `ep` ways by expert and the rest by width.
Pure rules of divisibility; whether it fits in memory is asked elsewhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from .model_facts import ModelShape


@dataclass(frozen=True, slots=True, order=True)
class Layout:
    """One replica's parallelism."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    cp: int = 1

    @property
    def stage_devices(self) -> int:
        """Devices of one pipeline stage."""
        return self.tp * self.dp * self.cp

    @property
    def devices(self) -> int:
        """Devices of one replica."""
        return self.stage_devices * self.pp

    @property
    def etp(self) -> int:
        """Ranks that share one expert's width."""
        return max(1, self.stage_devices // self.ep)

    def __str__(self) -> str:
        parts = [f"{name}{getattr(self, name)}" for name in ("tp", "pp", "dp", "ep", "cp")]
        return " ".join(part for part in parts if not part.endswith(("p1",))) or "tp1"


def why_illegal(shape: ModelShape, layout: Layout) -> str:
    """The first rule of divisibility that a layout breaks, with its numbers; "" when none does."""
    if shape.heads % layout.tp:
        return f"{shape.heads} attention heads do not divide over tp {layout.tp}"
    if layout.pp > shape.layers:
        return f"{shape.layers} layers do not fill {layout.pp} pipeline stages"
    if layout.ep > 1 and not shape.is_moe:
        return "a dense model has no experts to spread"
    if layout.stage_devices % layout.ep:
        return f"ep {layout.ep} does not divide the {layout.stage_devices} devices of a stage"
    for group in shape.groups:
        mlp = group.feed_forward
        if mlp.experts % layout.ep:
            return f"{mlp.experts} experts do not divide over ep {layout.ep}"
        if mlp.experts and mlp.expert_inner % layout.etp:
            return f"expert width {mlp.expert_inner} does not divide over {layout.etp} ranks"
        if mlp.dense_inner % layout.tp:
            return f"MLP width {mlp.dense_inner} does not divide over tp {layout.tp}"
    return ""


def divisors(number: int, limit: int) -> list[int]:
    """Divisors of a number up to a limit, ascending."""
    return [n for n in range(1, min(number, limit) + 1) if number % n == 0]


def layouts(shape: ModelShape, devices: int, *, context_ranks: int = 1) -> Iterator[Layout]:
    """Every legal layout of exactly `devices` devices, with at most so many ranks to a prompt."""
    for pp in divisors(devices, shape.layers):
        stage = devices // pp
        for tp in divisors(stage, shape.heads):
            for cp in divisors(stage // tp, context_ranks):
                dp = stage // tp // cp
                for ep in divisors(stage, max(1, shape.experts)):
                    layout = Layout(tp, pp, dp, ep, cp)
                    if not why_illegal(shape, layout):
                        yield layout
