"""How does a loop keep a right copy of a prefix? List once, then watch, in one stream.

The first batch is a reset that holds the whole prefix; `apply_batch` keeps a plain dict equal to
the store at `batch.revision`. Controllers and agents read from this; they need no other pattern.
"""

from collections.abc import AsyncIterator, MutableMapping

from .protocol import EventType, KeyValue, Store, WatchBatch, WatchEvent


async def follow_prefix(store: Store, prefix: str) -> AsyncIterator[WatchBatch]:
    """The prefix as it is now, as one reset batch, and then every change. Ends with the store.

    Raises StoreUnavailableError when the first listing gets no answer; later outages are waited
    out. Wrap it in `contextlib.aclosing` when leaving it early.
    """
    listed = await store.get_prefix(prefix)
    async with store.watch_prefix(prefix, start_revision=listed.revision + 1) as watch:
        events = tuple(WatchEvent(EventType.PUT, kv) for kv in listed.kvs)
        yield WatchBatch(listed.revision, events, reset=True)
        async for batch in watch:
            yield batch


def apply_batch(view: MutableMapping[str, KeyValue], batch: WatchBatch) -> None:
    """Bring a copy of a prefix up to the batch's revision."""
    if batch.reset:
        view.clear()
    for event in batch.events:
        if event.type is EventType.PUT:
            view[event.kv.key] = event.kv
        else:
            view.pop(event.kv.key, None)
