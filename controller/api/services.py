"""What do the routes share? The mirror to read from, the committer to write with, and limits.

Every write of the API follows one rule, `carry_out`: decide purely on the newest snapshot, commit
under its guards, and decide again when somebody was faster.
"""

import asyncio
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...core.clock import Clock
from ...core.errors import ConflictError, DeadlineError, NotFoundError, StoreAmbiguousError
from ...core.records import TokenRecord
from .. import views
from ..admission import Ground
from ..commit import Committer
from ..config import Limits
from ..intents import Accepted
from ..loop import Loop, read_facts
from ..model_facts import FactsReader, FactsSource
from ..observe import Mirror, Snapshot
from ..tenancy import sees_all, visible
from .audit import Sink

TRIES_MAX = 5  # losing five races in a row means that something writes without pause
REACH_S = 2.0  # for our own write to be visible to the next read of the same client
AMBIGUOUS_WAIT_S = 0.5  # for the watch to show whether an unanswered write happened


@dataclass(slots=True)
class Services:
    """The parts that `server` wires together."""

    cluster: str
    mirror: Mirror
    committer: Committer
    clock: Clock
    limits: Limits
    loop: Loop | None = None
    facts: FactsSource = field(default_factory=FactsReader)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    audit: Sink | None = None  # None: the log
    _fleet: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # by tenant; "": all

    def fleet_json(self, token: TokenRecord) -> bytes:
        """The FleetView that a token may see; encoded once for all of its tenant who watch."""
        version, scope = self.mirror.version, "" if sees_all(token) else token.tenant
        kept = self._fleet.get(scope)
        if kept is None or kept[0] != version:
            snapshot = visible(self.mirror.snapshot(), token)
            view = views.fleet(snapshot, self.cluster, self.clock.now(), self.limits)
            view["unreadable"] = dict(sorted(self.mirror.unreadable.items())) if not scope else {}
            kept = (version, json.dumps(view, separators=(",", ":")).encode())
            self._fleet[scope] = kept
        return f'{{"store_age_s":{self.mirror.age_s()},'.encode() + kept[1][1:]

    def seen_by(self, token: TokenRecord) -> Snapshot:
        """The newest picture, less what the token may not see: what every read answers from."""
        return visible(self.mirror.snapshot(), token)

    async def ground(self, *folders: str) -> Ground:
        """The newest snapshot with the facts of its models, and of the folders given."""
        snapshot = self.mirror.snapshot()
        return Ground(snapshot, await read_facts(self.facts, snapshot, *folders), self.limits)

    async def carry_out(self, decide: Callable[[Ground], Accepted], *folders: str) -> Accepted:
        """Decide and commit until it holds; raises what `decide` raises, and StoreError."""
        unanswered: Accepted | None = None
        for _ in range(TRIES_MAX):
            ground = await self.ground(*folders)
            try:
                accepted = decide(ground)
            except NotFoundError:
                if unanswered is None or not (unanswered.change and unanswered.change.deletes):
                    raise
                return unanswered  # what it was to take away is gone: it landed
            if accepted.change is None:
                return accepted
            try:
                result = await self.committer.commit(accepted.change)
            except StoreAmbiguousError:
                unanswered = accepted
                await self.clock.sleep(AMBIGUOUS_WAIT_S)
                continue  # what happened is in the next snapshot; operation ids make it safe
            await self.mirror.reach(result.revision, REACH_S)
            if result.succeeded:
                return accepted
        raise ConflictError("the records kept changing", next_step="repeat the request")


def new_operation_id() -> str:
    """For callers who did not bring one: such a call cannot be repeated safely."""
    return f"op-{uuid.uuid4().hex[:12]}"


def stale(services: Services) -> DeadlineError | None:
    """Why the API cannot answer yet, if it cannot."""
    if services.mirror.is_primed:
        return None
    return DeadlineError("the store was not read yet", next_step="try again in a second")


def accepted_body(accepted: Accepted, dry_run: bool) -> dict[str, Any]:
    """The answer to an intent."""
    return {**accepted.body, "dry_run": dry_run}
