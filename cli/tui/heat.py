"""Which experts are hot, and which rank holds them? The heat map as data. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..fleet_view import ModelView

LEVELS = 8  # shades of load; more cannot be told apart on a terminal


@dataclass(frozen=True, slots=True)
class HeatCell:
    """Neighbouring experts of a layer shown as one cell (usually just one)."""

    first_expert: int
    rank: int  # of the first of them
    level: int  # 0 idle .. LEVELS - 1 the hottest of its layer
    tokens: int


@dataclass(frozen=True, slots=True)
class HeatRow:
    """One MoE layer."""

    layer: int
    cells: tuple[HeatCell, ...]
    imbalance: float  # hottest rank over the mean rank; 1.0 is even, 0.0 when nothing ran


@dataclass(frozen=True, slots=True)
class HeatMap:
    """All layers; `experts_per_cell` is above 1 when the screen is narrower than a layer."""

    rows: tuple[HeatRow, ...]
    experts_per_cell: int
    width: int  # ranks


def heat_map(model: ModelView | None, columns: int) -> HeatMap | None:
    """The map of a model in at most `columns` cells a row; None without a placement."""
    if model is None or model.placement is None or columns < 1:
        return None
    placement = model.placement
    most = max((len(experts) for experts in placement.owners), default=0)
    per_cell = max(1, -(-most // columns))
    rows = []
    for layer, holders in enumerate(placement.owners):
        owner_E = [ranks[0] for ranks in holders]
        tokens_E = tokens_of_layer(model, layer, len(owner_E))
        uneven = _imbalance(load_of_ranks(model, layer, placement.width))
        rows.append(_row(layer, owner_E, tokens_E, per_cell, uneven))
    return HeatMap(tuple(rows), per_cell, placement.width)


def tokens_of_layer(model: ModelView, layer: int, experts: int) -> list[int]:
    """Tokens that each expert of a layer computed in the last second, over all workers."""
    total_E = [0] * experts
    for stats in model.stats:
        if layer < len(stats.expert_tokens):
            for expert, tokens in enumerate(stats.expert_tokens[layer][:experts]):
                total_E[expert] += tokens
    return total_E


def level_of(tokens: int, most: int) -> int:
    """The shade of a load: idle is 0, anything above it at least 1."""
    if tokens <= 0 or most <= 0:
        return 0
    return max(1, min(LEVELS - 1, round((LEVELS - 1) * tokens / most)))


def load_of_ranks(model: ModelView, layer: int, width: int) -> list[int]:
    """Tokens that each rank computed of a layer in the last second, whichever copies it used."""
    load_R = [0] * width
    for stats in model.stats:
        if 0 <= stats.rank < width and layer < len(stats.expert_tokens):
            load_R[stats.rank] += sum(stats.expert_tokens[layer])
    return load_R


def _row(
    layer: int, owner_E: Sequence[int], tokens_E: Sequence[int], per_cell: int, imbalance: float
) -> HeatRow:
    sums = [sum(tokens_E[i : i + per_cell]) for i in range(0, len(tokens_E), per_cell)]
    most = max(sums, default=0)
    cells = tuple(
        HeatCell(index * per_cell, owner_E[index * per_cell], level_of(tokens, most), tokens)
        for index, tokens in enumerate(sums)
    )
    return HeatRow(layer, cells, imbalance)


def _imbalance(load_R: Sequence[int]) -> float:
    total = sum(load_R)
    return max(load_R) * len(load_R) / total if total else 0.0
