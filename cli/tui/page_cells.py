"""What does each page of a device hold, on as many screen cells as there are? Pure.

A cell stands for so many consecutive pages that the device fits; it has the colour of what most of
them hold, but never that of "free" while a quarter of them is in use: what is there must be seen.
Below the map, the same in words: one line for each layer of experts, for KV by request, and so on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .bars import PARTS

FREE = "free"
USED_SHARE_SHOWN = 0.25
WORD_LINES_MAX = 8  # a device; the rest is counted

Span = Sequence[Any]  # first page, pages, owner, what it holds


@dataclass(frozen=True, slots=True)
class WordLine:
    """Pages of one content, wherever they are."""

    part: str
    text: str
    pages: int


@dataclass(frozen=True, slots=True)
class PageMap:
    """One device: a part for every cell in page order, and what the parts are."""

    device: str
    page_bytes: int
    total: int
    pages_per_cell: int
    cells: tuple[str, ...]
    words: tuple[WordLine, ...]
    unsaid: int  # contents that had no line


def page_map(told: Mapping[str, Any], cells: int) -> PageMap:
    """The map of a device in at most `cells` cells; `told` is the API's answer about its pages."""
    spans = told["spans"]
    total = int(told.get("total") or max((first + count for first, count, *_ in spans), default=0))
    per_cell = max(1, -(-total // max(1, cells)))
    words = tuple(_words(spans))
    return PageMap(
        f"{told['node']}/{told['device']}",
        int(told["page_bytes"]),
        total,
        per_cell,
        _cells(spans, total, per_cell),
        words[:WORD_LINES_MAX],
        max(0, len(words) - WORD_LINES_MAX),
    )


def part_of(owner: str) -> str:
    """The colour's name of an owner such as "chat/law/adapters"."""
    last = owner.rpartition("/")[2]
    return FREE if not owner else last if last in PARTS else "other"


def _cells(spans: Sequence[Span], total: int, per_cell: int) -> tuple[str, ...]:
    held: list[dict[str, int]] = [{} for _ in range(-(-total // per_cell))]
    known = [0] * len(held)
    for first, count, owner, _ in spans:
        part = part_of(str(owner))
        for at in range(first // per_cell, min(len(held), -(-(first + count) // per_cell))):
            begin, end = max(first, at * per_cell), min(first + count, (at + 1) * per_cell)
            held[at][part] = held[at].get(part, 0) + end - begin
            known[at] += end - begin
    for at, parts in enumerate(held):  # what no span names was promised to somebody
        missing = min(per_cell, total - at * per_cell) - known[at]
        if missing > 0:
            parts["reserved"] = parts.get("reserved", 0) + missing
    return tuple(map(_colour, held))


def _colour(parts: Mapping[str, int]) -> str:
    used = {part: pages for part, pages in parts.items() if part != FREE}
    if sum(used.values()) < USED_SHARE_SHOWN * sum(parts.values()):
        return FREE
    return max(used, key=lambda part: (used[part], part)) if used else FREE


def _words(spans: Sequence[Span]) -> list[WordLine]:
    """Spans of equal content as one line, in the order of PARTS and then as they stand."""
    pages: dict[tuple[str, str], int] = {}
    details: dict[tuple[str, str], list[str]] = {}
    for _, count, owner, what in spans:
        if not owner:
            continue
        head, _, detail = str(what).partition(", ")
        key = (part_of(str(owner)), f"{str(owner).partition('/')[0]}: {head}")
        pages[key] = pages.get(key, 0) + int(count)
        if detail and detail not in details.setdefault(key, []):
            details[key].append(detail)
    order = {part: at for at, part in enumerate(PARTS)}
    keys = sorted(pages, key=lambda key: order.get(key[0], len(order)))
    return [WordLine(key[0], _sentence(key[1], details.get(key, [])), pages[key]) for key in keys]


def _sentence(head: str, details: Sequence[str]) -> str:
    return ", ".join([head, *details])
