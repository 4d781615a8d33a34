"""What does our own engine really run? Rules as data, each with its reason.

A plan for our engine, and `parallelism: auto`, choose only among layouts that break none of these;
every other layout can be exported for another engine, with the reason printed. When the engine
learns something, its rule goes from this table and nothing else changes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ..core.families import FAMILIES
from .layouts import Layout
from .model_facts import ModelShape

ARCHITECTURES = frozenset(name for family in FAMILIES for name in family.architectures)


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that holds for every layout that the engine executes."""

    name: str
    holds: Callable[[ModelShape, Layout], bool]
    reason: str  # why a layout that breaks it cannot run; fields of the layout in braces


RULES = (
    Rule(
        "family",
        lambda shape, layout: shape.architecture in ARCHITECTURES,
        "our engine does not serve {architecture}",
    ),
    Rule(
        "one tensor rank",
        lambda shape, layout: layout.tp == 1,
        "our engine has no tensor parallelism (tp {tp}): attention is data-parallel",
    ),
    Rule(
        "one stage",
        lambda shape, layout: layout.pp == 1,
        "our engine has no pipeline stages (pp {pp}): every rank holds all layers' attention",
    ),
    Rule(
        "whole prompts",
        lambda shape, layout: layout.cp == 1,
        "our engine has no context parallelism (cp {cp}): a prompt stays on one rank",
    ),
    Rule(
        "experts over all ranks",
        lambda shape, layout: layout.ep == layout.dp,
        "our engine spreads experts over all {dp} ranks, not over {ep}",
    ),
)


def why_not_executable(shape: ModelShape, layout: Layout) -> str:
    """The first rule that a layout breaks, in words; "" when our engine runs it."""
    for rule in RULES:
        if not rule.holds(shape, layout):
            return rule.reason.format(
                architecture=shape.architecture,
                tp=layout.tp,
                pp=layout.pp,
                cp=layout.cp,
                dp=layout.dp,
                ep=layout.ep,
            )
    return ""


def executable_layouts(widths: Iterable[int]) -> Iterator[Layout]:
    """One layout a width: our engine needs no width that divides the number of experts."""
    for width in widths:
        yield Layout(dp=width, ep=width)
