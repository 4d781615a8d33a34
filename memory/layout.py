"""At which byte of a window does each weight stand, and on which pages?

Three layouts of one rank, plain data that the HMM keeps so that any process can attach:

    SharedLayout   every weight that is not a routed expert, packed one after another
    ExpertLayout   slots of equal size, one per expert copy; a slot is a whole number of pages,
                   so that re-spreading moves pages and never bytes
    KvLayout       pages that hold KV blocks

An expert in its slot is `gate_up` [2I, H] directly followed by `down` [H, I], and by its biases if
it has any; what is left of `slot_bytes` is padding. The window of an ExpertLayout places slot s at
`s * slot_bytes`. Pages are numbers of the device; a window maps `layout.pages` from offset 0 on.

Legend: H hidden, I expert hidden. Pure: no torch, no IO. `to_json`/`from_json` are exact inverses
and raise ProtocolError on anything that this version did not write.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from ..core.errors import MappingError, ProtocolError
from .backend import PageRun, coalesce, expand

ALIGN_BYTES = 64  # one cache line, and the widest vector load of the CPUs in use
DTYPE_BYTES: Mapping[str, int] = {
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}

ExpertKey = tuple[int, int]  # (MoE layer, expert)


def shared_name(model: str, device: str) -> str:
    """The HMM's name of a rank's SharedLayout."""
    return f"shared:{model}:{device}"


def experts_name(model: str, device: str, epoch: int) -> str:
    """The HMM's name of a rank's ExpertLayout of one epoch."""
    return f"experts:{model}:{device}:{epoch}"


def kv_name(model: str, device: str) -> str:
    """The HMM's name of a rank's KvLayout."""
    return f"kv:{model}:{device}"


def device_of_layout(name: str) -> str:
    """The device whose pages a layout of that name describes; empty for any other name."""
    parts = name.split(":")
    return parts[2] if len(parts) in (3, 4) else ""


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where one tensor stands, in bytes from the window's start; `dtype` is torch's name of it."""

    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * dtype_bytes(self.dtype)


@dataclass(frozen=True, slots=True)
class SharedLayout:
    """state_dict name -> place, and the pages below; `bytes` is the end of the last tensor."""

    places: dict[str, TensorPlace]
    bytes: int
    pages: tuple[int, ...] = ()

    @classmethod
    def pack(cls, tensors: Iterable[tuple[str, Sequence[int], str]]) -> "SharedLayout":
        """Pack (name, shape, dtype) in the order given, each aligned to ALIGN_BYTES."""
        places: dict[str, TensorPlace] = {}
        end = 0
        for name, shape, dtype in tensors:
            if name in places:
                raise MappingError(f"tensor {name} is packed twice")
            place = TensorPlace(_aligned(end), tuple(shape), dtype)
            places[name] = place
            end = place.offset + place.bytes
        return cls(places, end)

    def page_count(self, page_bytes: int) -> int:
        """How many pages hold the whole layout."""
        return -(-self.bytes // page_bytes)

    def with_pages(self, pages: Sequence[int]) -> "SharedLayout":
        """The same layout on other pages."""
        return replace(self, pages=tuple(pages))

    def to_json(self) -> dict[str, Any]:
        """Plain data; pages as runs."""
        places = {
            name: [place.offset, list(place.shape), place.dtype]
            for name, place in self.places.items()
        }
        return {"kind": "shared", "bytes": self.bytes, "places": places, "pages": _runs(self.pages)}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "SharedLayout":
        """The inverse of `to_json`."""
        with _reading("shared", plain):
            places = {
                str(name): TensorPlace(int(offset), tuple(int(size) for size in shape), str(dtype))
                for name, (offset, shape, dtype) in plain["places"].items()
            }
            return cls(places, int(plain["bytes"]), _pages(plain["pages"]))


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """The tensors of one expert: gate_up [2I, H], down [H, I], then biases if any, of one dtype."""

    hidden: int
    expert_hidden: int
    dtype: str
    has_bias: bool = False

    @property
    def gate_up_shape(self) -> tuple[int, int]:
        """[2I, H]: gate rows, then up rows."""
        return 2 * self.expert_hidden, self.hidden

    @property
    def down_shape(self) -> tuple[int, int]:
        """[H, I]."""
        return self.hidden, self.expert_hidden

    @property
    def down_offset(self) -> int:
        """Bytes from the slot's start to `down`."""
        return math.prod(self.gate_up_shape) * dtype_bytes(self.dtype)

    @property
    def places(self) -> dict[str, TensorPlace]:
        """Tensor -> place in the slot: gate_up, down, then gate_up_bias [2I] and down_bias [H]."""
        shapes: dict[str, tuple[int, ...]] = {
            "gate_up": self.gate_up_shape,
            "down": self.down_shape,
        }
        if self.has_bias:
            shapes |= {"gate_up_bias": (2 * self.expert_hidden,), "down_bias": (self.hidden,)}
        places, end = {}, 0
        for name, shape in shapes.items():
            places[name] = TensorPlace(end, shape, self.dtype)
            end += places[name].bytes
        return places

    @property
    def bytes(self) -> int:
        """Bytes of one expert in its slot, without padding."""
        return _expert_bytes(self)


@cache
def _expert_bytes(shape: ExpertShape) -> int:
    """Asked for every slot of every layout, of the few shapes that a process ever meets."""
    return sum(place.bytes for place in shape.places.values())


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """Which slot holds which expert copy of a rank, and the pages of every slot.

    `slots` maps (MoE layer, expert) to a slot; `slot_pages[s]` are the pages of slot s, in order.
    """

    shape: ExpertShape
    page_bytes: int
    slots: dict[ExpertKey, int] = field(default_factory=dict)
    slot_pages: tuple[tuple[int, ...], ...] = ()

    @property
    def pages_per_slot(self) -> int:
        """Pages of one slot."""
        return -(-self.shape.bytes // self.page_bytes)

    @property
    def slot_bytes(self) -> int:
        """Bytes from one slot to the next."""
        return self.pages_per_slot * self.page_bytes

    @property
    def bytes(self) -> int:
        """Bytes of the window that holds every slot."""
        return len(self.slot_pages) * self.slot_bytes

    @property
    def pages(self) -> tuple[int, ...]:
        """All pages in window order."""
        return tuple(page for pages in self.slot_pages for page in pages)

    def pages_of(self, layer: int, expert: int) -> tuple[int, ...]:
        """The pages of one expert copy; KeyError when the rank does not hold it."""
        return self.slot_pages[self.slots[layer, expert]]

    def experts_of(self, layer: int) -> dict[int, int]:
        """expert -> slot, for one MoE layer."""
        return {expert: slot for (at, expert), slot in self.slots.items() if at == layer}

    @classmethod
    def build(
        cls,
        shape: ExpertShape,
        page_bytes: int,
        pages_by_expert: Mapping[ExpertKey, Sequence[int]],
    ) -> "ExpertLayout":
        """One slot per expert in (layer, expert) order, so that a layer's slots are neighbours."""
        size = cls(shape, page_bytes).pages_per_slot
        keys = sorted(pages_by_expert)
        slot_pages = tuple(tuple(pages_by_expert[key]) for key in keys)
        for key, pages in zip(keys, slot_pages, strict=True):
            if len(pages) != size:
                raise MappingError(f"expert {key}: {len(pages)} pages for a slot of {size}")
        slots = {key: slot for slot, key in enumerate(keys)}
        return cls(shape, page_bytes, slots, slot_pages)

    def to_json(self) -> dict[str, Any]:
        """Plain data; slots as [layer, expert] in slot order, pages of all slots as runs."""
        return {
            "kind": "experts",
            "shape": [
                self.shape.hidden,
                self.shape.expert_hidden,
                self.shape.dtype,
                *([True] if self.shape.has_bias else []),
            ],
            "page_bytes": self.page_bytes,
            "slots": [[layer, expert, slot] for (layer, expert), slot in self.slots.items()],
            "pages": _runs(self.pages),
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "ExpertLayout":
        """The inverse of `to_json`."""
        with _reading("experts", plain):
            hidden, expert_hidden, dtype, *bias = plain["shape"]
            shape = ExpertShape(int(hidden), int(expert_hidden), str(dtype), bias == [True])
            page_bytes = int(plain["page_bytes"])
            slots = {(int(at), int(expert)): int(slot) for at, expert, slot in plain["slots"]}
            size, pages = cls(shape, page_bytes).pages_per_slot, _pages(plain["pages"])
            if len(pages) % size or any(
                not 0 <= slot < len(pages) // size for slot in slots.values()
            ):
                raise ValueError(f"{len(pages)} pages do not make slots of {size}")
            cut = range(0, len(pages), size)
            return cls(shape, page_bytes, slots, tuple(pages[at : at + size] for at in cut))


@dataclass(frozen=True, slots=True)
class KvLayout:
    """Pages of KV and the size of one block; block b starts at byte `b * block_bytes`."""

    block_bytes: int
    page_bytes: int
    pages: tuple[int, ...] = ()

    @property
    def block_count(self) -> int:
        """Whole blocks that fit."""
        return len(self.pages) * self.page_bytes // self.block_bytes

    def to_json(self) -> dict[str, Any]:
        """Plain data; pages as runs."""
        return {
            "kind": "kv",
            "block_bytes": self.block_bytes,
            "page_bytes": self.page_bytes,
            "pages": _runs(self.pages),
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "KvLayout":
        """The inverse of `to_json`."""
        with _reading("kv", plain):
            sizes = int(plain["block_bytes"]), int(plain["page_bytes"])
            return cls(*sizes, _pages(plain["pages"]))


@dataclass(frozen=True, slots=True)
class Respread:
    """What becomes of a rank's expert copies between two epochs."""

    kept: dict[
        ExpertKey, tuple[int, ...]
    ]  # pages that stay: mapped into the shadow window as they are
    missing: tuple[ExpertKey, ...]  # copies that need new pages and bytes
    dropped: dict[ExpertKey, tuple[int, ...]]  # pages to free when the old epoch is retired


def respread(old: ExpertLayout | None, wanted: Iterable[ExpertKey]) -> Respread:
    """Compare a rank's layout with the expert copies that it must hold next."""
    held = {} if old is None else {key: old.slot_pages[slot] for key, slot in old.slots.items()}
    want = sorted(set(wanted))
    return Respread(
        kept={key: held[key] for key in want if key in held},
        missing=tuple(key for key in want if key not in held),
        dropped={key: pages for key, pages in sorted(held.items()) if key not in set(want)},
    )


def dtype_bytes(dtype: str) -> int:
    """Bytes of one item; MappingError on an unknown dtype."""
    try:
        return DTYPE_BYTES[dtype]
    except KeyError:
        raise MappingError(f"dtype {dtype!r} is not one of {', '.join(DTYPE_BYTES)}") from None


class _reading:
    """Turn every shape error of foreign data into a ProtocolError that names the layout."""

    def __init__(self, kind: str, plain: dict[str, Any]) -> None:
        found = plain.get("kind") if isinstance(plain, dict) else None
        if found != kind:
            raise ProtocolError(f"a layout of kind {kind!r} was expected, got {found!r}")
        self.kind = kind

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyError | TypeError | ValueError | AttributeError):
            raise ProtocolError(f"malformed {self.kind} layout: {error!r}") from error


def _aligned(offset: int) -> int:
    return -(-offset // ALIGN_BYTES) * ALIGN_BYTES


def _runs(pages: Sequence[int]) -> list[list[int]]:
    return [[run.first, run.count] for run in coalesce(tuple(pages))]


def _pages(runs: Iterable[Sequence[int]]) -> tuple[int, ...]:
    return expand([PageRun(int(first), int(count)) for first, count in runs])
