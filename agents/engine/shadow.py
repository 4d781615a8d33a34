"""How does a device get the expert window of the next epoch while it serves from the present one?

Kept experts are the same pages mapped a second time; missing ones get reserved pages, which are
filled through a writable window of their own. The shadow window itself is read-only, so that no
stray write can touch weights that serve. Nothing is committed here: the reservation is taken over
at COMMIT together with the layout, or forfeited whole.
"""

from collections.abc import Iterator

import torch

from ...core.plan import Placement
from ...memory.bulk import ExpertLoad
from ...memory.hmm.client import HmmClient, Reservation
from ...memory.layout import ExpertLayout, respread
from ...memory.tensors import strided_at
from ...memory.window import Window
from .context import WorkerContext
from .gently import Piece
from .moe import ExpertSlots, expert_weights
from .sources import ExpertKey, Sources, bytes_at

#: Slots mapped and prefaulted per piece. Chosen: well under a millisecond each.
SLOTS_PER_PIECE = 16


class Shadow:
    """The next expert window of one device, being built."""

    def __init__(
        self,
        context: WorkerContext,
        hmm: HmmClient,
        placement: Placement,
        rank: int,
        old: ExpertLayout | None,
    ) -> None:
        self._context, self._placement = context, placement
        handle = hmm.device(context.launch.device)
        spread = respread(old, placement.experts_on(rank))
        self.missing = spread.missing
        self.dropped = spread.dropped
        empty = ExpertLayout(context.expert_shape, handle.page_bytes)
        self._slot_pages, self._slot_bytes = empty.pages_per_slot, empty.slot_bytes
        self.reservation: Reservation | None = None
        fresh: tuple[int, ...] = ()
        if self.missing:
            count = len(self.missing) * self._slot_pages
            self.reservation = hmm.reserve(context.launch.device, count, context.owner("experts"))
            fresh = self.reservation.pages
        added = {
            key: fresh[at * self._slot_pages : (at + 1) * self._slot_pages]
            for at, key in enumerate(self.missing)
        }
        self.layout = ExpertLayout.build(
            context.expert_shape, handle.page_bytes, {**spread.kept, **added}
        )
        # A rank may own nothing (more devices than experts): one page of addresses, never mapped.
        self.window = Window(handle, max(self.layout.bytes, handle.page_bytes), writable=False)
        self._filling: Window | None = None
        if fresh:
            self._filling = Window(handle, len(fresh) * handle.page_bytes, writable=True)
            self._filling.map(0, fresh)

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert."""
        return self._context.expert_shape.bytes

    def fill_pieces(self, sources: Sources) -> Iterator[Piece]:
        """One piece per missing expert that does not come from another node."""
        for key in self.missing:
            step = sources.expert_step(key)
            if step is None or not step.crosses_node:
                yield lambda key=key: self._fill(sources, key)  # type: ignore[misc]

    def loads(self, sources: Sources) -> dict[ExpertKey, ExpertLoad]:
        """Readings of the missing experts that the record says come from the checkpoint."""
        if self._filling is None:
            return {}
        return {
            key: sources.expert_load(key, self._filling, self._offset(key))
            for key in self.missing
            if sources.is_loaded_first(key)
        }

    def incoming(self, key: ExpertKey) -> torch.Tensor | None:
        """Where the bytes of a missing expert belong; None when it is here already."""
        if key not in self.missing or self._filling is None:
            return None
        return bytes_at(self._filling, self._offset(key), self.expert_bytes)

    def map_pieces(self) -> Iterator[Piece]:
        """Pieces that map and prefault the shadow window."""
        count = len(self.layout.slot_pages)
        for first in range(0, count, SLOTS_PER_PIECE):
            last = min(first + SLOTS_PER_PIECE, count)
            yield lambda first=first, last=last: self._map(first, last)  # type: ignore[misc]

    def slots(self) -> ExpertSlots:
        """The experts over the mapped window, for the engine."""
        context, shape = self._context, self._context.expert_shape
        count, dtype = len(self.layout.slot_pages), context.expert_dtype
        stride = self._slot_bytes // dtype.itemsize
        views = {}
        for name, place in shape.places.items():
            strides = (stride, place.shape[1], 1) if len(place.shape) == 2 else (stride, 1)
            dims = (count, *place.shape)
            views[name] = strided_at(self.window, place.offset, dims, strides, dtype)
        weights = expert_weights(views, context.shape.expert)
        extent = (len(context.shape.moe_layers), context.shape.experts)
        return ExpertSlots(weights, self.layout.slots, *extent)

    def end_filling(self) -> None:
        """Close the writable mapping: from here on the pages are only read."""
        if self._filling is not None:
            self._filling.close()
            self._filling = None

    def close(self) -> None:
        """Give back windows; the reservation is the caller's to commit or forfeit."""
        self.end_filling()
        self.window.close()

    def _offset(self, key: ExpertKey) -> int:
        return self.missing.index(key) * self._slot_bytes

    def _fill(self, sources: Sources, key: ExpertKey) -> None:
        assert self._filling is not None
        sources.fill_expert(key, self._filling, self._offset(key))

    def _map(self, first: int, last: int) -> None:
        pages = [page for slot in self.layout.slot_pages[first:last] for page in slot]
        offset = first * self._slot_bytes
        self.window.map(offset, pages)
        self.window.prefault(offset, len(pages) * self.window.page_bytes)
