"""What does each page of a device hold? Owners and layouts become spans that people can read.

Experts of one layer that stand on consecutive pages are one span; KV pages name the requests whose
blocks lie on them; a page that two owners share is told with both. Pure. The result is bounded:
beyond SPANS_MAX the rest of a device is told as one span per owner.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import ProtocolError
from .layout import ExpertLayout, KvLayout

SPANS_MAX = 2048
REQUESTS_MAX = 4  # named on one span of KV; the rest is counted

Runs = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class PageSpan:
    """Pages `[first, first + count)` and what they hold, such as "layer 3, experts 4-7"."""

    first: int
    count: int
    owner: str  # "" for pages that nobody holds
    what: str


def page_spans(
    owners: Mapping[str, Runs],
    layouts: Mapping[str, dict[str, Any]],
    requests: Mapping[str, Sequence[int]],
) -> list[PageSpan]:
    """Spans in page order; free pages come under the empty owner.

    `owners` is `HmmClient.owners`, `layouts` by name, `requests` maps "MODEL/REQUEST" to KV blocks.
    """
    told = _told_by_layouts(layouts, requests)
    spans: list[PageSpan] = []
    for owner, runs in owners.items():
        plain = "" if not owner else _plain_word(owner)
        model = owner.partition("/")[0]
        for first, count in runs:
            for page in range(first, first + count):
                what = told.get((model, page), plain) if owner else "free"
                _append(spans, PageSpan(page, 1, owner, what))
    spans.sort(key=lambda span: (span.first, span.owner))
    if len(spans) <= SPANS_MAX:
        return spans
    return sorted(
        (
            PageSpan(first, count, owner, _plain_word(owner) if owner else "free")
            for owner, runs in owners.items()
            for first, count in runs
        ),
        key=lambda span: span.first,
    )[:SPANS_MAX]


def _append(spans: list[PageSpan], page: PageSpan) -> None:
    last = spans[-1] if spans else None
    if (
        last is not None
        and (last.owner, last.what) == (page.owner, page.what)
        and last.first + last.count == page.first
    ):
        spans[-1] = PageSpan(last.first, last.count + 1, last.owner, last.what)
    else:
        spans.append(page)


def _told_by_layouts(
    layouts: Mapping[str, dict[str, Any]], requests: Mapping[str, Sequence[int]]
) -> dict[tuple[str, int], str]:
    """(model, page) -> what a layout says is there; the newest epoch has the last word."""
    told: dict[tuple[str, int], str] = {}
    for name in sorted(layouts, key=_epoch_of):
        kind, _, rest = name.partition(":")
        model = rest.partition(":")[0]
        try:
            if kind == "experts":
                told |= _experts(model, ExpertLayout.from_json(layouts[name]))
            elif kind == "kv":
                told |= _kv(model, KvLayout.from_json(layouts[name]), requests)
        except ProtocolError:
            continue  # of another version: its pages are told by their owner
    return told


def _epoch_of(name: str) -> tuple[int, str]:
    last = name.rpartition(":")[2]
    return (int(last), name) if last.isdigit() else (-1, name)


def _experts(model: str, layout: ExpertLayout) -> dict[tuple[str, int], str]:
    told: dict[tuple[str, int], str] = {}
    groups: list[list[tuple[int, int, tuple[int, ...]]]] = []
    order = sorted((pages[0], key, pages) for key, pages in _slots(layout) if pages)
    for _, (layer, expert), pages in order:
        last = groups[-1][-1] if groups else None
        follows = last is not None and last[2][-1] + 1 == pages[0]
        if last is not None and follows and last[:2] == (layer, expert - 1):
            groups[-1].append((layer, expert, pages))
        else:
            groups.append([(layer, expert, pages)])
    for group in groups:
        layer, first, last_expert = group[0][0], group[0][1], group[-1][1]
        many = f"experts {first}-{last_expert}" if last_expert > first else f"expert {first}"
        for _, _, pages in group:
            told |= {(model, page): f"layer {layer}, {many}" for page in pages}
    return told


def _slots(layout: ExpertLayout) -> list[tuple[tuple[int, int], tuple[int, ...]]]:
    return [(key, layout.slot_pages[slot]) for key, slot in layout.slots.items()]


def _kv(
    model: str, layout: KvLayout, requests: Mapping[str, Sequence[int]]
) -> dict[tuple[str, int], str]:
    on_page: dict[int, list[str]] = {}
    for name, blocks in sorted(requests.items()):
        owner, _, request = name.partition("/")
        if owner != model:
            continue
        for block in blocks:
            begin, end = block * layout.block_bytes, (block + 1) * layout.block_bytes
            for at in range(begin // layout.page_bytes, -(-end // layout.page_bytes)):
                if at < len(layout.pages) and request not in on_page.setdefault(at, []):
                    on_page[at].append(request)
    return {(model, page): _requests(on_page.get(at, [])) for at, page in enumerate(layout.pages)}


def _requests(names: list[str]) -> str:
    if not names:
        return "KV, no request"
    more = f" and {len(names) - REQUESTS_MAX} more" if len(names) > REQUESTS_MAX else ""
    return f"KV of {', '.join(names[:REQUESTS_MAX])}{more}"


def _plain_word(owner: str) -> str:
    _, _, part = owner.partition("/")
    words = {"shared": "weights that are no routed experts", "experts": "experts", "kv": "KV"}
    return words.get(part, part.replace("/", " ") or "in use")
