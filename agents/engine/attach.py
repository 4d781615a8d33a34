"""What does a worker need beside experts, and what of it is there already? Shared weights and KV.

Both belong to the device, not to the process: when a worker dies, the HMM still has them under
their names, and its replacement maps them without copying a byte. Only where nothing is found are
pages reserved and filled. Reservations are committed at COMMIT with the layouts that name them.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from ...core.errors import WorkerError
from ...core.records import TransitionRecord
from ...memory.hmm.client import HmmClient, Reservation
from ...memory.layout import KvLayout, SharedLayout, kv_name, shared_name
from ...memory.tensors import shared_tensors, tensor_at
from ...memory.window import Window
from .context import WorkerContext
from .engine import Engine
from .gently import Piece
from .grammar import Grammars
from .kv import KvPool
from .loading import SharedLoad, loading_peers
from .model import ForwardPass, bind_shared
from .sources import Sources, bytes_at

#: Weights named in a refusal; there may be one for every layer.
NAMED_MAX = 3
#: KV faulted in per piece, without the interpreter lock: about 4 ms of first touch at 4 KiB pages.
PREFAULT_BYTES = 4 * 1024 * 1024


class Attachment:
    """Shared weights and KV of one device, found or being made."""

    def __init__(self, context: WorkerContext, hmm: HmmClient) -> None:
        self._context, self._hmm = context, hmm
        self._handle = hmm.device(context.launch.device)
        # Each with the layouts that name its pages: they become true in one instant.
        self.reservations: list[tuple[Reservation, dict[str, dict[str, Any]]]] = []
        self.shared = self._find_shared()
        self.is_shared_new = not self.shared.pages
        if self.is_shared_new:
            self.shared = self._reserve_shared()
        found = self._find_kv()
        self.kv = self._completed(found) if found is not None else self._reserve_kv()
        self._filling: Window | None = None
        self._shared_window: Window | None = None
        self._kv_window: Window | None = None

    @property
    def kv_blocks(self) -> int:
        """KV blocks of this rank."""
        return self.kv.block_count

    def fill_pieces(self, sources: Sources) -> Iterator[Piece]:
        """Fill the shared weights from this node or the checkpoint, where that is to be done."""
        step = sources.shared_step
        if not self.is_shared_new or (step is not None and step.crosses_node):
            return
        target = self._filling_window()
        done: list[bool] = []
        yield lambda: done.append(sources.fill_shared(self.shared, target))
        if done == [True]:
            return
        for name in self.shared.places:
            yield lambda name=name: sources.load_shared_tensor(  # type: ignore[misc]
                name, self.shared, target
            )

    def shared_load(
        self, record: TransitionRecord, should_stop: Callable[[], bool]
    ) -> SharedLoad | None:
        """The loading of the shared weights with the other ranks of this node; None when held."""
        device = self._context.device
        if device not in loading_peers(record, device.node):
            return None
        window = self._filling_window()
        load = SharedLoad(self._hmm, record, device, self.shared, window, should_stop)
        if self.is_shared_new:
            return load
        load.tell()  # the peers may have everything from here
        return None

    def incoming(self) -> torch.Tensor | None:
        """Where shared weights from another node belong; None when they are here already."""
        if not self.is_shared_new:
            return None
        return bytes_at(self._filling_window(), 0, self.shared.bytes)

    def map_pieces(self) -> Iterator[Piece]:
        """Map the shared weights and KV for the engine, and fault KV in."""
        yield self._map_shared
        yield self._map_kv
        page = self.kv.page_bytes
        for offset, size in _spans(0, len(self.kv.pages) * page, page):
            yield partial(self._prefault_kv, offset, size)

    def build_engine(self) -> Engine:
        """Bind the weights and put KV under the engine; call it once, when all pieces ran."""
        context = self._context
        if self._shared_window is None or self._kv_window is None:
            raise WorkerError("the weights are not mapped yet")
        bind_shared(context.template, shared_tensors(self._shared_window, self.shared))
        room = self._kv_window.bytes // context.dtype.itemsize
        flat = tensor_at(self._kv_window, 0, (room,), context.dtype)
        block = context.shape.kv_block_shape(context.limits.block_tokens)
        pool = KvPool.over(flat, block, self.kv.block_count)
        grammars = Grammars(context.launch.model_folder, context.shape.vocab)
        forward = ForwardPass(context.template)
        if context.is_reproducible:
            require_stable_rows(forward, context.launch.model)
        return Engine(forward, pool, context.limits, grammars=grammars)

    @property
    def kv_window_bytes(self) -> int:
        """Addresses for KV; 0 while it is not mapped."""
        return self._kv_window.bytes if self._kv_window is not None else 0

    def map_more_kv(self, layout: KvLayout) -> None:
        """Map and fault in the pages of `layout` that stand behind those mapped now."""
        if self._kv_window is None:
            raise WorkerError("KV is not mapped yet")
        start = len(self.kv.pages) * layout.page_bytes
        self._kv_window.map(start, layout.pages[len(self.kv.pages) :])
        for offset, size in _spans(start, len(layout.pages) * layout.page_bytes, layout.page_bytes):
            self._kv_window.prefault(offset, size)

    def unmap_kv_from(self, offset: int, size: int) -> None:
        """Unmap pages that the engine has given up."""
        if self._kv_window is not None:
            self._kv_window.unmap(offset, size)

    def close(self) -> None:
        """Give back windows; reservations are the caller's."""
        self.end_filling()
        for window in (self._shared_window, self._kv_window):
            if window is not None:
                window.close()

    def end_filling(self) -> None:
        """Close the writable mapping of the shared weights."""
        if self._filling is not None:
            self._filling.close()
            self._filling = None

    def _find_shared(self) -> SharedLayout:
        launch = self._context.launch
        plain = self._hmm.get_layout(shared_name(launch.model, launch.device))
        if plain is None:
            return self._context.shared_layout()
        layout = SharedLayout.from_json(plain)
        self._context.check_layout(layout)
        return layout

    def _reserve_shared(self) -> SharedLayout:
        count = self.shared.page_count(self._handle.page_bytes)
        reservation = self._reserve(count, "shared")
        layout = self.shared.with_pages(reservation.pages)
        launch = self._context.launch
        name = shared_name(launch.model, launch.device)
        self.reservations.append((reservation, {name: layout.to_json()}))
        return layout

    def _find_kv(self) -> KvLayout | None:
        launch = self._context.launch
        plain = self._hmm.get_layout(kv_name(launch.model, launch.device))
        layout = KvLayout.from_json(plain) if plain is not None else None
        if layout is not None and layout.block_bytes != self._context.kv_block_bytes():
            raise WorkerError(
                f"{self._context.device} holds KV blocks of {layout.block_bytes} B, this model has "
                f"blocks of {self._context.kv_block_bytes()} B",
                next_step="delete the model before changing kvBlockTokens",
            )
        return layout

    def _completed(self, found: KvLayout) -> KvLayout:
        """What a rank that was killed had lent of its KV is KV again."""
        missing = -(-self._context.kv_bytes // found.page_bytes) - len(found.pages)
        if missing <= 0:
            return found
        reservation = self._reserve(missing, "kv")
        layout = KvLayout(found.block_bytes, found.page_bytes, (*found.pages, *reservation.pages))
        launch = self._context.launch
        name = kv_name(launch.model, launch.device)
        self.reservations.append((reservation, {name: layout.to_json()}))
        return layout

    def _reserve_kv(self) -> KvLayout:
        page, block = self._handle.page_bytes, self._context.kv_block_bytes()
        if self._context.kv_bytes < block:
            raise WorkerError(
                f"kvPerDevice {self._context.kv_bytes} B is less than one block of {block} B",
                next_step="raise memory.kvPerDevice or lower engine.kvBlockTokens",
            )
        reservation = self._reserve(-(-self._context.kv_bytes // page), "kv")
        layout = KvLayout(block, page, reservation.pages)
        launch = self._context.launch
        name = kv_name(launch.model, launch.device)
        self.reservations.append((reservation, {name: layout.to_json()}))
        return layout

    def _reserve(self, count: int, part: str) -> Reservation:
        owner = self._context.owner(part)
        return self._hmm.reserve(self._context.launch.device, count, owner)

    def _filling_window(self) -> Window:
        if self._filling is None:
            size = len(self.shared.pages) * self._handle.page_bytes
            self._filling = Window(self._handle, size, writable=True)
            self._filling.map(0, self.shared.pages)
        return self._filling

    def _map_shared(self) -> None:
        size = len(self.shared.pages) * self._handle.page_bytes
        self._shared_window = Window(self._handle, size, writable=False)
        self._shared_window.map(0, self.shared.pages)
        self._shared_window.prefault(0, size)

    def _map_kv(self) -> None:
        # Addresses for the whole device: KV grows into pages that experts give up.
        self._kv_window = Window(self._handle, self._handle.bytes, writable=True)
        self._kv_window.map(0, self.kv.pages)

    def _prefault_kv(self, offset: int, size: int) -> None:
        assert self._kv_window is not None
        self._kv_window.prefault(offset, size)


def _spans(start: int, end: int, page_bytes: int) -> Iterator[tuple[int, int]]:
    """(offset, size) of the pieces of a range, whole pages each."""
    step = max(PREFAULT_BYTES // page_bytes, 1) * page_bytes
    for offset in range(start, end, step):
        yield offset, min(step, end - offset)


def require_stable_rows(forward: ForwardPass, model: str) -> None:
    """The start-up self-test of `precision: reproducible`.

    Raises:  WorkerError with the reason when a row's bits depend on its neighbours here.
    """
    unstable = forward.unstable_weights()
    if unstable:
        raise WorkerError(
            f"model {model}: precision reproducible is not possible on this machine: rows of "
            f"{', '.join(unstable[:NAMED_MAX])} ({len(unstable)} weights) change bits with the "
            "rows beside them",
            next_step="use precision: standard, or devices whose GEMM keeps rows apart",
        )
