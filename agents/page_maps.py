"""What do this node's pages hold, for `moectl describe device`? Told every few seconds, on change.

One record a device, beside the records that everyone watches: it is large, and read by people only,
so it waits a little while a transition has the machine's hands full. What cannot be read is left as
it was.
"""

import json
import logging
from collections.abc import Collection
from typing import Any

from ..core.errors import MoectlError
from ..core.records import Keys
from ..memory.arbiter import party_of
from ..memory.page_map import PageSpan, page_spans
from .memory_book import MemoryBook
from .publish import Publisher
from .worker import LocalWorker
from .workers import Workers

log = logging.getLogger("moectl.agent.pages")

EVERY_TURNS = 5  # housekeeping turns of a second each; a transition takes few of them
ANSWER_S = 0.8


class PageMaps:
    """The page records of one node."""

    def __init__(self, node: str, keys: Keys, publisher: Publisher) -> None:
        self._node, self._keys, self._publisher = node, keys, publisher
        self._rested = EVERY_TURNS  # calls since the last telling

    async def tell(self, memory: MemoryBook, workers: Workers, busy: Collection[str] = ()) -> None:
        """Write what has changed, at every EVERY_TURNS-th call; half as often while `busy`."""
        self._rested += 1
        if self._rested <= (2 * EVERY_TURNS if busy else EVERY_TURNS):
            return
        self._rested = 1
        requests = await _requests(workers)
        try:
            for device, told in (await memory.page_tables()).items():
                spans = page_spans(told.owners, told.layouts, requests.get(device, {}))
                self._put(device, told.usage, spans)
        except MoectlError as error:
            log.warning("no page map: %s", error.message)

    def _put(self, device: str, usage: dict[str, Any], spans: list[PageSpan]) -> None:
        record = {
            "node": self._node,
            "device": device,
            **{key: usage[key] for key in ("page_bytes", "total", "free", "reserved")},
            "touched": usage.get("touched", -1),
            "pretouch": usage.get("pretouch", ""),
            "claims": budget_rows(usage),
            "spans": [[span.first, span.count, span.owner, span.what] for span in spans],
        }
        key = self._keys.page_map(self._node, device)
        self._publisher.put(key, json.dumps(record, separators=(",", ":")))


def budget_rows(usage: dict[str, Any]) -> list[list[Any]]:
    """[party, guarantee in pages, weight, pages in use] of every party of a device, by name."""
    used: dict[str, int] = {}
    for owner, pages in usage["used"].items():
        used[party_of(str(owner))] = used.get(party_of(str(owner)), 0) + int(pages)
    claims = usage.get("claims", {})
    return [
        [party, *claims.get(party, (0, 0.0)), used.get(party, 0)]
        for party in sorted({*claims, *used})
    ]


async def _requests(workers: Workers) -> dict[str, dict[str, list[int]]]:
    """device -> "MODEL/REQUEST" -> KV blocks, of workers that answer."""
    found: dict[str, dict[str, list[int]]] = {}
    for worker in [each for each in workers if not each.is_dead]:
        blocks = await _blocks(worker)
        named = {f"{worker.model}/{name}": held for name, held in blocks.items()}
        found.setdefault(worker.device.device, {}).update(named)
    return found


async def _blocks(worker: LocalWorker) -> dict[str, Any]:
    try:
        return dict((await worker.control.call("kv", ANSWER_S))["requests"])
    except (MoectlError, KeyError, TypeError, ValueError) as error:
        log.debug("worker %s %s: no KV table: %s", worker.model, worker.device, error)
        return {}
