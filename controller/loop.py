"""Who looks and acts, again and again? The leader's loop: snapshot, decide, commit, wait.

A thin shell around the pure `reconcile`. It holds no state that matters: kill it at any
instruction, start another, and the other goes on from the store. Writes are fenced by leadership
and by the revisions they were decided on, so two loops that both believe to lead do no harm.
"""

import contextlib
import logging
from dataclasses import dataclass

from ..core.errors import MoectlError, StoreAmbiguousError, StoreError
from ..core.priority import Bystanders
from ..core.records import EndpointRecord, to_json
from ..core.store.election import Leadership
from ..core.transitions import TERMINAL_PHASES
from .commit import Committer
from .config import Limits
from .decision import Change
from .model_facts import Facts, FactsSource
from .observe import Mirror, Snapshot, first_of
from .reconcile import reconcile

LOG = logging.getLogger(__name__)

REACH_S = 2.0  # for the mirror to show our own write; longer means the watch is down
IDLE_S = 30.0  # look again even when nothing changed: a missed wake-up must not last
RETRY_S = 0.3  # after the store refused or failed: outages are seconds, a hurry is pointless


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this controller is: its name in the leader's key, and the endpoint it announces."""

    name: str
    endpoint: EndpointRecord | None = None
    lease_ttl_s: float = 5.0


class Loop:
    """The reconcile loop of one controller process."""

    def __init__(
        self,
        mirror: Mirror,
        committer: Committer,
        identity: Identity,
        limits: Limits,
        facts: FactsSource,
        bystanders: Bystanders | None = None,
    ) -> None:
        self.is_leader = False
        self._bystanders = bystanders
        self._mirror = mirror
        self._committer = committer
        self._store = committer.store
        self._clock = committer.clock
        self._identity = identity
        self._limits = limits
        self._facts = facts

    def press(self, is_pressing: bool = True) -> None:
        """Something is to go on, or goes on, that must not wait for those who serve."""
        if self._bystanders is not None:
            self._bystanders.look(is_pressing=is_pressing)

    async def run(self) -> None:
        """Campaign, lead, and campaign again when leadership is lost; until cancelled."""
        while True:
            try:
                await self._lead_once()
            except StoreError as error:
                LOG.warning("the store failed the controller: %s", error.message)
            self.is_leader = False
            await self._clock.sleep(RETRY_S)

    async def _lead_once(self) -> None:
        lease = await self._store.lease(self._identity.lease_ttl_s)
        lease.start()
        try:
            key = self._mirror.keys.leader
            leadership = await self._store.campaign(key, self._identity.name, lease)
            await self._announce(leadership)
            self.is_leader = True
            LOG.info("%s leads", self._identity.name)
            await self._lead(leadership)
        finally:
            self.is_leader = False
            with contextlib.suppress(StoreError):
                await lease.revoke()

    async def _announce(self, leadership: Leadership) -> None:
        endpoint = self._identity.endpoint
        if endpoint is not None:
            key = self._mirror.keys.endpoint(endpoint.role)
            await self._store.put(key, to_json(endpoint), lease=leadership.lease.id)

    async def _lead(self, leadership: Leadership) -> None:
        """Reconcile until the lease is lost."""
        while not leadership.lease.lost.is_set():
            seen = self._mirror.control_version
            try:
                wait_s = await self.tick(leadership)
            except Exception as error:
                # The loop's top: a bug met on one picture must not end the control of the fleet; it
                # is logged with its trace, and looked at again when something changes.
                self._report(error)
                wait_s = RETRY_S
            await self._wait(leadership, seen, wait_s)

    def _report(self, error: Exception) -> None:
        if isinstance(error, MoectlError):
            LOG.warning("a tick failed: %s", error)
        else:
            LOG.exception("a tick failed on a bug")

    async def tick(self, leadership: Leadership) -> float:
        """Look, decide, act; returns the seconds after which to look again if nothing changes."""
        if not self._mirror.is_primed:
            return RETRY_S
        snapshot = self._mirror.snapshot()
        running = [
            seen.value
            for seen in snapshot.transitions.values()
            if seen.value.phase not in TERMINAL_PHASES
        ]
        self.press(any(not transition.is_gentle for transition in running))
        facts = await self._facts.read_all(folders_of(snapshot))
        now = self._clock.now()
        decision = reconcile(snapshot, facts, now, self._limits)
        for change in decision.changes:
            if not await self._commit(change, leadership):
                return RETRY_S
        if decision.changes:
            return 0.0
        return IDLE_S if decision.wake_at is None else max(0.0, decision.wake_at - now)

    async def _commit(self, change: Change, leadership: Leadership) -> bool:
        """Commit and let the mirror catch up; False means: look again before doing more."""
        try:
            result = await self._committer.commit(change, [leadership.fence])
        except StoreAmbiguousError:
            return False
        if result.succeeded:
            for event in change.events:
                LOG.info("%s %s: %s", event.subject, event.reason, event.message)
        await self._mirror.reach(result.revision, REACH_S)
        return result.succeeded

    async def _wait(self, leadership: Leadership, seen: int, wait_s: float) -> None:
        """Until a record that matters changes, the time is over, or leadership is lost."""
        wait_s = min(wait_s, IDLE_S)
        if self._mirror.control_version != seen or leadership.lease.lost.is_set() or wait_s <= 0:
            return
        await first_of(
            leadership.lease.lost.wait(), self._mirror.control_changed_since(seen, wait_s)
        )


def folders_of(snapshot: Snapshot) -> list[str]:
    """Checkpoint folders that the declared and running models name."""
    specs = [s.value.spec for (kind, _), s in snapshot.specs.items() if kind == "Model"]
    specs += [
        running.value.model_spec
        for model in snapshot.active
        if (running := snapshot.running(model)) is not None
    ]
    paths = (spec.get("source", {}).get("path") for spec in specs)
    return [path for path in paths if isinstance(path, str)]


async def read_facts(reader: FactsSource, snapshot: Snapshot, *more: str) -> Facts:
    """Facts of every model in the snapshot and of the folders given."""
    return await reader.read_all([*folders_of(snapshot), *more])
