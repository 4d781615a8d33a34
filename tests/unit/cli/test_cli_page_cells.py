"""A page map on a screen: every page is in one cell, and nothing that is there vanishes."""

from hypothesis import given
from hypothesis import strategies as st

from moectl.cli.tui.page_cells import page_map


def told(spans: list[list[object]], total: int) -> dict[str, object]:
    return {"node": "n1", "device": "d0", "page_bytes": 16384, "total": total, "spans": spans}


def test_a_small_device_has_a_cell_for_every_page() -> None:
    spans = [[0, 2, "chat/shared", "weights"], [2, 1, "chat/kv", "KV of r1"], [4, 4, "", "free"]]
    shown = page_map(told(spans, 8), 80)
    assert shown.pages_per_cell == 1
    assert shown.cells == (*("shared",) * 2, "kv", "reserved", *("free",) * 4)


def test_a_big_device_is_drawn_in_the_cells_there_are() -> None:
    total = 64 * 1024
    spans = [
        [0, 40_000, "chat/experts", "layer 0, experts 0-63"],
        [40_000, 300, "chat/kv", "KV of r1"],
        [40_300, total - 40_300, "", "free"],
    ]
    shown = page_map(told(spans, total), 200)
    assert len(shown.cells) <= 200 and shown.pages_per_cell == 328
    assert shown.cells.count("experts") == 122
    assert "kv" in shown.cells  # most of a cell, though half a percent of the device


def test_words_say_layers_experts_and_requests() -> None:
    spans = [
        [0, 6, "chat/kv", "KV of r1, r2"],
        [6, 2, "chat/experts", "layer 0, experts 0-1"],
        [8, 2, "chat/experts", "layer 1, expert 7"],
        [10, 1, "chat/experts", "layer 0, expert 9"],
        [11, 5, "", "free"],
    ]
    shown = page_map(told(spans, 16), 80)
    assert [(line.part, line.text, line.pages) for line in shown.words] == [
        ("experts", "chat: layer 0, experts 0-1, expert 9", 3),
        ("experts", "chat: layer 1, expert 7", 2),
        ("kv", "chat: KV of r1, r2", 6),
    ]
    many = [[at, 1, "chat/experts", f"layer {at}, expert 0"] for at in range(20)]
    assert (len(page_map(told(many, 20), 80).words), page_map(told(many, 20), 80).unsaid) == (8, 12)


@given(
    counts=st.lists(st.integers(1, 500), min_size=1, max_size=30),
    cells=st.integers(1, 300),
    owners=st.lists(st.sampled_from(["a/experts", "a/kv", ""]), min_size=30, max_size=30),
)
def test_every_page_is_in_exactly_one_cell(
    counts: list[int], cells: int, owners: list[str]
) -> None:
    starts = [sum(counts[:at]) for at in range(len(counts))]
    spans = [[first, n, who, ""] for first, n, who in zip(starts, counts, owners, strict=False)]
    total = sum(counts)
    shown = page_map(told(spans, total), cells)
    assert len(shown.cells) <= cells
    assert (len(shown.cells) - 1) * shown.pages_per_cell < total
    assert len(shown.cells) * shown.pages_per_cell >= total
    whole = {who.rpartition("/")[2] or "free" for who in owners[: len(counts)]}
    assert set(shown.cells) <= whole
