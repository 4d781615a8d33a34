"""Are layouts packed without overlap, and do they survive a round trip?"""

import json
from typing import Any

import pytest

from moectl.core.errors import MappingError, ProtocolError
from moectl.memory.layout import (
    ExpertLayout,
    ExpertShape,
    KvLayout,
    SharedLayout,
    dtype_bytes,
    experts_name,
    kv_name,
    respread,
    shared_name,
)

SHAPE = ExpertShape(hidden=192, expert_hidden=64, dtype="float32")
PAGE = 16 * 1024


def expert_layout() -> ExpertLayout:
    return ExpertLayout.build(
        SHAPE, PAGE, {(1, 3): range(20, 29), (0, 7): range(9), (0, 2): range(40, 49)}
    )


def test_shared_tensors_are_packed_in_order_aligned_and_without_overlap() -> None:
    layout = SharedLayout.pack(
        [
            ("a", (3, 5), "float32"),
            ("b", (), "int64"),
            ("c", (0, 4), "float16"),
            ("d", (2,), "bool"),
        ]
    )
    assert [place.offset for place in layout.places.values()] == [0, 64, 128, 128]
    assert (layout.bytes, layout.page_count(100), layout.page_count(130)) == (130, 2, 1)


def test_a_tensor_cannot_be_packed_twice_nor_with_an_unknown_dtype() -> None:
    with pytest.raises(MappingError, match="packed twice"):
        SharedLayout.pack([("a", (1,), "float32"), ("a", (1,), "float32")])
    with pytest.raises(MappingError, match="float3"):
        SharedLayout.pack([("a", (1,), "float3")])
    assert dtype_bytes("bfloat16") == 2


def test_the_demo_expert_fills_nine_pages() -> None:
    layout = expert_layout()
    assert (SHAPE.bytes, layout.pages_per_slot, layout.slot_bytes) == (147456, 9, 147456)
    assert (SHAPE.gate_up_shape, SHAPE.down_shape, SHAPE.down_offset) == (
        (128, 192),
        (192, 64),
        98304,
    )


def test_slots_of_a_layer_are_neighbours_and_know_their_pages() -> None:
    layout = expert_layout()
    assert layout.slots == {(0, 2): 0, (0, 7): 1, (1, 3): 2}
    assert layout.experts_of(0) == {2: 0, 7: 1}
    assert layout.pages_of(1, 3) == tuple(range(20, 29))
    assert layout.bytes == 27 * PAGE
    with pytest.raises(MappingError, match="8 pages for a slot of 9"):
        ExpertLayout.build(SHAPE, PAGE, {(0, 0): range(8)})


@pytest.mark.parametrize(
    "layout",
    [
        SharedLayout.pack([("a", (3, 5), "float32"), ("b", (9,), "uint8")]).with_pages((5, 6, 2)),
        expert_layout(),
        ExpertLayout(SHAPE, PAGE),
        KvLayout(block_bytes=24576, page_bytes=PAGE, pages=(7, 8, 1)),
    ],
    ids=lambda layout: type(layout).__name__,
)
def test_json_is_an_exact_inverse(layout: Any) -> None:
    assert type(layout).from_json(json.loads(json.dumps(layout.to_json()))) == layout


@pytest.mark.parametrize(
    "plain",
    [
        None,
        {},
        {"kind": "kv"},
        {"kind": "experts"},
        expert_layout().to_json() | {"pages": [[0, 26]]},
        expert_layout().to_json() | {"slots": [[0, 0, 3]]},
        expert_layout().to_json() | {"slots": [[0, 0, -1]]},
        expert_layout().to_json() | {"shape": [1]},
        expert_layout().to_json() | {"pages": "x"},
    ],
)
def test_foreign_data_is_a_protocol_error(plain: Any) -> None:
    with pytest.raises(ProtocolError):
        ExpertLayout.from_json(plain)


def test_kv_counts_whole_blocks_over_page_borders() -> None:
    assert KvLayout(24576, PAGE, tuple(range(4))).block_count == 2


def test_a_respread_keeps_pages_and_names_what_is_missing_and_dropped() -> None:
    change = respread(expert_layout(), [(1, 3), (0, 5), (0, 2), (0, 5)])
    assert change.kept == {(0, 2): tuple(range(40, 49)), (1, 3): tuple(range(20, 29))}
    assert change.missing == ((0, 5),)
    assert change.dropped == {(0, 7): tuple(range(9))}
    assert respread(None, [(0, 1)]).missing == ((0, 1),)


def test_names_tell_model_device_and_epoch() -> None:
    assert shared_name("chat", "d0") == "shared:chat:d0"
    assert experts_name("chat", "d0", 3) == "experts:chat:d0:3"
    assert kv_name("chat", "d0") == "kv:chat:d0"
