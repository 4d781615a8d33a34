"""How does a process keep a true picture of a prefix of the store? List once, then watch for ever.

`apply(key, value)` is called for every record of the first listing and every later change, in
order, with None for a deletion. With the store away the picture stays as it was; the watch itself
resumes without losing or repeating an event (the store's contract), so here is nothing to recover.
"""

import asyncio
import contextlib
from collections.abc import Callable

from ..core.errors import StoreError
from ..core.store.follow import follow_prefix
from ..core.store.protocol import EventType, Store

RETRY_S = 0.3  # between attempts at the first listing: outages are seconds, a hurry is pointless

Apply = Callable[[str, bytes | None], None]


def _nothing() -> None:
    return None


async def follow(
    store: Store, prefix: str, apply: Apply, *, on_batch: Callable[[], None] = _nothing
) -> None:
    """Run until cancelled. `on_batch` is called after the first listing and after every batch."""
    while True:
        with contextlib.suppress(StoreError):
            async with contextlib.aclosing(follow_prefix(store, prefix)) as batches:  # type: ignore[type-var]
                async for batch in batches:
                    for event in batch.events:
                        deleted = event.type is EventType.DELETE
                        apply(event.kv.key, None if deleted else event.kv.value)
                    on_batch()
        await asyncio.sleep(RETRY_S)
