"""How does a decided change become true? One fenced transaction, never sent twice.

Every write of controller and API goes through `commit`. The comparisons are the revisions that the
change was decided on, and, for the loop, the leader's fence; if one of them no longer holds nothing
happens and the caller looks again.
"""

from collections.abc import Sequence

from ..core.clock import Clock
from ..core.errors import LeaseLostError
from ..core.records import Keys, to_json
from ..core.store.protocol import (
    Compare,
    Op,
    Store,
    TxnResult,
    delete_op,
    mod_revision_is,
    put_op,
)
from .decision import Change

EVENT_TTL_S = 2 * 3600.0  # an event lives for one to two hours
EVENT_LEASE_AGE_S = 3600.0  # one lease serves the events of an hour: few leases, as etcd likes it


class EventLease:
    """The lease that events die with; renewed by taking a new one, never kept alive."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._id = 0
        self._taken_at = 0.0

    async def id(self) -> int:
        """A lease with at least an hour to live."""
        now = self._clock.monotonic()
        if not self._id or now - self._taken_at > EVENT_LEASE_AGE_S:
            lease = await self._store.lease(EVENT_TTL_S)
            self._id, self._taken_at = lease.id, now
        return self._id

    def forget(self) -> None:
        """The store does not know the lease any more (it was restored or wiped): take a new one."""
        self._id = 0


class Committer:
    """Turns changes into transactions on one cluster's keys."""

    def __init__(self, store: Store, keys: Keys, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self._keys = keys
        self._events = EventLease(store, clock)

    async def commit(self, change: Change, fence: Sequence[Compare] = ()) -> TxnResult:
        """Do all of the change or nothing; `succeeded` tells which.

        Raises StoreUnavailableError when nothing happened and StoreAmbiguousError when nobody
        knows: then look again, the guards make a second decision safe.
        """
        compare = [*fence, *(mod_revision_is(key, revision) for key, revision in change.guards)]
        try:
            return await self.store.transaction(compare, await self._ops(change))
        except LeaseLostError:
            self._events.forget()
            raise

    async def _ops(self, change: Change) -> list[Op]:
        ops = [put_op(key, value) for key, value in change.puts]
        ops += [delete_op(key) for key in change.deletes]
        if change.events:
            lease = await self._events.id()
            ops += [put_op(self._keys.event(e.id), to_json(e), lease) for e in change.events]
        return ops
