"""Which models, workers and tokens exist, and how is each worker reached? Kept true by watches.

`Directory` is the picture: plain dictionaries fed by watch batches. It holds one link per worker
data address, opened as soon as the worker is known (so that a flip finds it connected) and closed
when the worker is lost or its record is gone and its connection with it. With the store away the
picture stays as it was and serving goes on.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ...core.errors import ProtocolError
from ...core.records import Keys, SpecRecord, TokenRecord, WorkerRecord, from_json
from ...core.transitions import WorkerState
from ..changes import Changes
from .link import Heartbeat, WorkerLink
from .prefixes import Keys as PrefixKeys
from .prefixes import PrefixHomes
from .route import Candidate, choose

log = logging.getLogger("moectl.gateway.fleet")

_GONE = frozenset({WorkerState.LOST, WorkerState.STOPPED})


@dataclass(slots=True)
class _Worker:
    record: WorkerRecord
    link: WorkerLink
    is_listed: bool = True


class Directory:
    """The gateway's picture of the fleet; changed only by `apply_*`, read by everybody."""

    def __init__(
        self, keys: Keys, secret: str, *, tokens_max: int, heartbeat: Heartbeat | None = None
    ) -> None:
        self.changes = Changes()
        self.specs: dict[str, SpecRecord] = {}
        self.tokens: dict[str, TokenRecord] = {}  # by digest
        self.waiting: Counter[str] = Counter()  # generations without a worker, by model
        self._silences = 0  # of links that are closed by now
        self.loaded: set[str] = set()  # prefixes whose first listing is in
        self._keys = keys
        self._secret = secret
        self._tokens_max = tokens_max
        self._heartbeat = heartbeat or Heartbeat()
        self._prefixes = PrefixHomes()
        self._workers: dict[str, _Worker] = {}  # by key below the workers prefix
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What has to be followed."""
        return (self._keys.specs, self._keys.workers, self._keys.tokens)

    @property
    def is_ready(self) -> bool:
        """Whether the first listing of everything has been seen."""
        return self.loaded.issuperset(self.prefixes)

    def pick(self, model: str, avoid: frozenset[str], prefix: PrefixKeys = ()) -> WorkerLink | None:
        """The link of the worker to send to now, or None; `avoid` are addresses."""
        links = {worker.link.address: worker.link for worker in self._of(model)}
        matched = self._prefixes.matched(prefix)
        chosen = choose((_candidate(each, matched) for each in self._of(model)), avoid)
        if chosen is None:
            return None
        self._prefixes.note(prefix, chosen.address)
        return links[chosen.address]

    def at(self, model: str, address: str) -> WorkerLink | None:
        """The link of a model's worker at an address, or None."""
        links = (worker.link for worker in self._of(model))
        return next((link for link in links if link.address == address), None)

    @property
    def silences(self) -> int:
        """How often so far a worker was given up for its silence."""
        return self._silences + sum(each.link.silences for each in self._workers.values())

    def load(self, model: str) -> int:
        """Requests of this gateway that the model's workers hold."""
        return sum(worker.link.load for worker in self._of(model))

    def serving_count(self, model: str) -> int:
        """How many workers of a model could take a request now."""
        return sum(
            worker.link.is_connected and worker.record.state is WorkerState.SERVING
            for worker in self._of(model)
        )

    def context_tokens(self, model: str) -> int:
        """The smallest context that a connected worker announced; 0 when none has."""
        known = [worker.link.context_tokens for worker in self._of(model)]
        return min((tokens for tokens in known if tokens), default=0)

    def apply(self, prefix: str, key: str, value: bytes | None) -> None:
        """Take one change of the store; a record that cannot be read is skipped and logged."""
        name = key.removeprefix(prefix)
        try:
            if prefix == self._keys.workers:
                self._apply_worker(name, value)
            elif prefix == self._keys.tokens:
                _apply_record(self.tokens, name, TokenRecord, value)
            elif name.startswith("Model/"):
                _apply_record(self.specs, name.removeprefix("Model/"), SpecRecord, value)
        except ProtocolError as error:
            log.warning("record %s skipped: %s", key, error.message)
        self.changes.notify()

    async def close(self) -> None:
        """Close every link."""
        workers, self._workers = self._workers, {}
        await asyncio.gather(*(worker.link.close() for worker in workers.values()))
        await asyncio.gather(*self._closing)

    def _of(self, model: str) -> Iterable[_Worker]:
        return [worker for worker in self._workers.values() if worker.record.model == model]

    def _apply_worker(self, name: str, value: bytes | None) -> None:
        known = self._workers.get(name)
        if value is None:
            self._unlist(name, known)
            return
        record = from_json(WorkerRecord, value)
        if known is not None and (record.state in _GONE or known.link.address != record.address):
            self._forget(name)
            known = None
        if record.state in _GONE or not record.address:
            return
        if known is None:
            known = self._workers[name] = _Worker(record, self._open(record.address))
        known.record = record
        known.is_listed = True

    def _unlist(self, name: str, known: _Worker | None) -> None:
        """A record vanished: keep the worker as a last resort while its connection lives."""
        if known is None:
            return
        known.is_listed = False
        if not known.link.is_connected:
            self._forget(name)

    def _open(self, address: str) -> WorkerLink:
        link = WorkerLink(
            address,
            self._secret,
            tokens_max=self._tokens_max,
            on_change=self._on_link_change,
            heartbeat=self._heartbeat,
        )
        link.start()
        return link

    def _on_link_change(self) -> None:
        for name, worker in list(self._workers.items()):
            if not worker.is_listed and not worker.link.is_connected:
                self._forget(name)
        self.changes.notify()

    def _forget(self, name: str) -> None:
        worker = self._workers.pop(name)
        self._silences += worker.link.silences
        task = asyncio.get_running_loop().create_task(worker.link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _candidate(worker: _Worker, matched: dict[str, int]) -> Candidate:
    return Candidate(
        address=worker.link.address,
        device=str(worker.record.device),
        state=worker.record.state,
        epoch=worker.record.epoch,
        is_listed=worker.is_listed,
        is_connected=worker.link.is_connected,
        load=worker.link.load,
        matched=matched.get(worker.link.address, 0),
    )


def _apply_record(table: dict, name: str, cls: type, value: bytes | None) -> None:
    if value is None:
        table.pop(name, None)
    else:
        table[name] = from_json(cls, value)
