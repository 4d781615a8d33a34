"""Who leads, and how does a leader prove it with every write?

One key, held by the leader's lease. Whoever creates it leads; the others wait until it is gone.
The proof is the revision at which the key was created: `Leadership.fence` goes into the comparisons
of every transaction of the leader, so a leader that was replaced without noticing changes nothing.
There is no queue: the waiters race when the key goes, which a handful of standbys can afford.
"""

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from ..errors import LeaseLostError, StoreAmbiguousError, StoreUnavailableError
from .lease import Lease
from .protocol import (
    Compare,
    EventType,
    KeyValue,
    Watch,
    create_revision_is,
    delete_op,
    get_op,
    put_op,
    version_is,
)

if TYPE_CHECKING:
    from .protocol import Store

RETRY_S = (
    0.2  # between attempts while the store is away; an outage is seconds, a hurry is pointless
)


class Leadership:
    """Held leadership of a key. Over as soon as the lease is lost or `resign` returns."""

    def __init__(self, store: "Store", key: str, fence: Compare, lease: Lease) -> None:
        self.key = key
        self.fence = fence
        self.lease = lease
        self._store = store

    async def resign(self) -> None:
        """Give the key back, if it is still ours; the lease lives on."""
        await self._store.transaction([self.fence], [delete_op(self.key)])

    async def __aenter__(self) -> "Leadership":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.resign()


async def campaign(store: "Store", key: str, value: bytes | str, lease: Lease) -> Leadership:
    """Wait until `key` is ours. Raises LeaseLostError when the lease ends first.

    One lease campaigns for a key at most once at a time: a key that carries our lease is ours:
    this is how an ambiguous answer to the creating write is settled.
    """
    while not lease.lost.is_set():
        try:
            holder, revision = await _try_once(store, key, value, lease)
        except (StoreUnavailableError, StoreAmbiguousError):
            await asyncio.sleep(RETRY_S)
            continue
        if holder is None or holder.lease == lease.id:
            created = revision if holder is None else holder.create_revision
            return Leadership(store, key, create_revision_is(key, created), lease)
        await _until_lost(lease, _wait_deleted(store, key, revision + 1))
    raise LeaseLostError(
        f"{key}: the lease {lease.id:x} was lost while campaigning",
        next_step="take a new lease and campaign again",
    )


async def _try_once(
    store: "Store", key: str, value: bytes | str, lease: Lease
) -> tuple[KeyValue | None, int]:
    """Create the key if it is absent; returns who holds it (None: we do, just now), and when."""
    result = await store.transaction(
        [version_is(key, 0)], [put_op(key, value, lease.id)], [get_op(key)]
    )
    holder = None if result.succeeded else result.responses[0]
    assert holder is None or isinstance(holder, KeyValue)
    return holder, result.revision


async def _wait_deleted(store: "Store", key: str, start_revision: int) -> None:
    watch: Watch = store.watch_prefix(key, start_revision=start_revision)
    async with watch:
        async for batch in watch:
            if batch.reset or any(
                event.kv.key == key and event.type is EventType.DELETE for event in batch.events
            ):
                return


async def _until_lost(lease: Lease, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` until it is done or the lease is lost, whichever comes first."""
    tasks = {asyncio.ensure_future(work), asyncio.ensure_future(lease.lost.wait())}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
