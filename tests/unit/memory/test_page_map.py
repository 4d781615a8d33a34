"""Is every page of a device told once, with what a person wants to know?"""

from moectl.memory.layout import ExpertLayout, ExpertShape, KvLayout
from moectl.memory.page_map import SPANS_MAX, PageSpan, page_spans

SHAPE = ExpertShape(32, 16, "float32")  # 6 KiB: two pages of 4 KiB
PAGE = 4096


def layouts() -> dict[str, dict[str, object]]:
    old = ExpertLayout.build(SHAPE, PAGE, {(0, 0): (0, 1), (0, 1): (2, 3), (0, 3): (4, 5)})
    new = ExpertLayout.build(SHAPE, PAGE, {(0, 1): (2, 3), (1, 7): (6, 7)})
    kv = KvLayout(PAGE // 2, PAGE, (10, 11, 12))
    return {
        "experts:chat:d0:9": old.to_json(),
        "experts:chat:d0:10": new.to_json(),
        "kv:chat:d0": kv.to_json(),
        "experts:chat:d0:odd": {"kind": "of another version"},
    }


def test_pages_tell_layers_experts_requests_and_what_is_free() -> None:
    owners = {
        "chat/experts": [(0, 8)],
        "chat/kv": [(10, 3)],
        "chat/shared": [(8, 2)],
        "": [(13, 3)],
    }
    spans = page_spans(owners, layouts(), {"chat/r1": [0, 1], "chat/r2": [1, 2], "other/r3": [5]})
    assert spans == [
        PageSpan(0, 2, "chat/experts", "layer 0, experts 0-1"),
        PageSpan(2, 2, "chat/experts", "layer 0, expert 1"),  # the newest epoch has the last word
        PageSpan(4, 2, "chat/experts", "layer 0, expert 3"),
        PageSpan(6, 2, "chat/experts", "layer 1, expert 7"),
        PageSpan(8, 2, "chat/shared", "weights that are no routed experts"),
        PageSpan(10, 1, "chat/kv", "KV of r1, r2"),
        PageSpan(11, 1, "chat/kv", "KV of r2"),
        PageSpan(12, 1, "chat/kv", "KV, no request"),
        PageSpan(13, 3, "", "free"),
    ]


def test_many_requests_on_a_page_are_counted_and_shared_pages_told_with_both() -> None:
    requests = {f"chat/r{number}": [0] for number in range(7)}
    (kv,) = page_spans({"chat/kv": [(10, 1)]}, layouts(), requests)
    assert kv.what == "KV of r0, r1, r2, r3 and 3 more"
    both = page_spans({"chat/a/adapters": [(4, 1)], "chat/b/adapters": [(4, 1)]}, {}, {})
    assert [(span.first, span.what) for span in both] == [(4, "a adapters"), (4, "b adapters")]


def test_the_answer_is_bounded_whatever_is_asked() -> None:
    owners = {f"m/a{number % 2}/adapters": [] for number in range(2)}
    runs = {owner: [(2 * at + n, 1) for at in range(2000)] for n, owner in enumerate(owners)}
    assert len(page_spans(runs, {}, {})) == SPANS_MAX
