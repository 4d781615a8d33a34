"""How does KV grow into pages that experts gave up, and give them back before experts return?

    RETIRE    `grow`: the freed pages are mapped behind the KV that is there, and become blocks
    PREPARE   `give_back`: blocks at the end are emptied (their content moves to lower blocks; only
              what finds no place is computed again), unmapped, and free for the experts

Bookkeeping is the HMM's: the layout "kv:<model>:<device>" always names exactly the pages that are
mapped, so that a replacement of this worker finds the grown KV as it was. Called on the worker's
helper threads; the engine's part happens on the engine's thread, between two steps.
"""

import contextlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from ...core.errors import MoectlError
from ...memory.hmm.client import HmmClient
from ...memory.layout import KvLayout, kv_name
from .attach import Attachment
from .context import WorkerContext
from .engine import Engine

#: How long a step may last before the engine turns to us. Generous: a long prompt on a busy core.
ENGINE_DEADLINE_S = 10.0

Ask = Callable[[Callable[[Engine], None], float], None]


class KvRoom:
    """The KV pages of one device's engine."""

    def __init__(self, context: WorkerContext, attachment: Attachment, ask: Ask) -> None:
        self._context, self._attachment, self._ask = context, attachment, ask
        self._lock = threading.Lock()  # one change at a time

    def grow(self, hmm: HmmClient, pages: int) -> int:
        """Take up to `pages` free pages as KV; returns how many blocks were gained.

        Never more than KV's share: what others are guaranteed stays free for them.
        """
        with self._lock:
            old, device = self._attachment.kv, self._context.launch.device
            share = hmm.room(device, self._context.owner("kv"))
            count = min(pages, self._room(old), share)
            if count <= 0:
                return 0
            reservation = hmm.reserve(device, count, self._context.owner("kv"))
            new = KvLayout(old.block_bytes, old.page_bytes, (*old.pages, *reservation.pages))
            try:
                self._attachment.map_more_kv(new)
            except BaseException:
                start, size = len(old.pages) * old.page_bytes, count * old.page_bytes
                with contextlib.suppress(MoectlError):  # nothing was mapped
                    self._attachment.unmap_kv_from(start, size)
                reservation.forfeit()
                raise
            reservation.commit({self._name: new.to_json()})
            gained = new.block_count - old.block_count
            self._attachment.kv = new
            if gained:
                self._ask(lambda engine: engine.grow_kv(gained), ENGINE_DEADLINE_S)
            return gained

    def give_back(self, hmm: HmmClient, pages: int) -> int:
        """Free up to `pages` of the pages that KV has grown by; returns how many it were."""
        with self._lock:
            old = self._attachment.kv
            count = min(pages, len(old.pages) - self._first_pages(old))
            return self._free(hmm, old, lambda engine: count) if count > 0 else 0

    def lend(self, hmm: HmmClient) -> int:
        """Free what the requests of a rank that leaves can never fill; returns how many pages.

        Such a rank takes no new requests. What it lends makes room, fleet-wide, for the experts
        that come to others; a forfeit takes it back.
        """
        with self._lock:
            old = self._attachment.kv

            def spare(engine: Engine) -> int:
                needed = max(engine.kv_blocks_to_finish(), 1)
                return len(old.pages) - -(-needed * old.block_bytes // old.page_bytes)

            return self._free(hmm, old, spare)

    def _free(self, hmm: HmmClient, old: KvLayout, spare: Callable[[Engine], int]) -> int:
        """Free as many of the last pages as `spare` says; the caller holds the lock.

        One task for the engine, because others wait for it: `spare` is asked on its thread.
        """
        kept: list[KvLayout] = []

        def shrink(engine: Engine) -> None:
            keep = len(old.pages) - max(spare(engine), 0)
            kept.append(KvLayout(old.block_bytes, old.page_bytes, old.pages[:keep]))
            if lost := old.block_count - kept[0].block_count:
                engine.shrink_kv(lost)

        self._ask(shrink, ENGINE_DEADLINE_S)
        new, first = kept[0], len(kept[0].pages)
        gone = old.pages[first:]
        if not gone:
            return 0
        self._attachment.kv = new
        self._attachment.unmap_kv_from(first * old.page_bytes, len(gone) * old.page_bytes)
        owner, layouts = self._context.owner("kv"), {self._name: new.to_json()}
        hmm.free(self._context.launch.device, gone, owner, layouts=layouts)
        return len(gone)

    def still(self) -> AbstractContextManager[Any]:
        """While it is held no block gets another number and no page of KV goes."""
        return self._lock

    @property
    def _name(self) -> str:
        launch = self._context.launch
        return kv_name(launch.model, launch.device)

    def _first_pages(self, layout: KvLayout) -> int:
        """Pages that `kvPerDevice` asks for: KV never gets smaller than that."""
        return -(-self._context.kv_bytes // layout.page_bytes)

    def _room(self, layout: KvLayout) -> int:
        """Pages for which there are addresses left."""
        return self._attachment.kv_window_bytes // layout.page_bytes - len(layout.pages)


def try_grow(room: KvRoom, hmm: HmmClient, pages: int) -> tuple[int, str]:
    """`grow`, for those who can do without: (blocks gained, why none)."""
    try:
        return room.grow(hmm, pages), ""
    except MoectlError as error:
        return 0, error.message
