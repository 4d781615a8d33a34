"""How does a process keep a true picture of a prefix of the store? List once, then watch for ever.

`apply(key, value)` is called for every record of the first listing and every later change, in
order, with None for a deletion. With the store away the picture stays as it was; the watch itself
resumes without losing or repeating an event (the store's contract).
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import cast

from ..core.errors import StoreError
from ..core.store.follow import follow_prefix
from ..core.store.protocol import EventType, Store, WatchBatch

RETRY_S = 0.3  # between attempts at the first listing: outages are seconds, a hurry is pointless

Apply = Callable[[str, bytes | None], None]


def _nothing() -> None:
    return None


async def follow(
    store: Store, prefix: str, apply: Apply, *, on_batch: Callable[[], None] = _nothing
) -> None:
    """Run until cancelled. `on_batch` is called after the first listing and after every batch."""
    known: set[str] = set()
    while True:
        with contextlib.suppress(StoreError):
            batches = cast(AsyncGenerator[WatchBatch, None], follow_prefix(store, prefix))
            async with contextlib.aclosing(batches):
                async for batch in batches:
                    _apply_batch(batch, apply, known)
                    on_batch()
        await asyncio.sleep(RETRY_S)


def _apply_batch(batch: WatchBatch, apply: Apply, known: set[str]) -> None:
    """Apply a batch; one that stands for the whole prefix also removes what it does not hold."""
    if batch.reset:
        present = {event.kv.key for event in batch.events if event.type is EventType.PUT}
        for key in sorted(known - present):
            known.discard(key)
            apply(key, None)
    for event in batch.events:
        if event.type is EventType.PUT:
            known.add(event.kv.key)
            apply(event.kv.key, event.kv.value)
        elif event.kv.key in known:
            known.discard(event.kv.key)
            apply(event.kv.key, None)
