"""How does a client follow the fleet? Server-sent events, which resume where they broke off.

`fleet` events are complete, so a client that reconnects has lost nothing; with `Last-Event-ID` it
is not sent again what it has. `event` events are single records of the event log in order: with
`Last-Event-ID` the stream goes on after the last one received, none lost and none twice, as long as
the log is kept. At most five a second; a comment as heartbeat when nothing happens. `transition`
events tell of one operation, whenever it changed, and end with it: whoever waits for one asks once.
"""

import json
from collections.abc import AsyncIterator

from ...core.records import TokenRecord
from .. import views
from .services import Services

INTERVAL_S = 0.2  # between two events: five a second look live on a screen
LOOK_S = 1.0  # for the end of a token or of the server, which no record of a model tells
HEARTBEAT_S = 5.0  # well under the 30 s after which clients and proxies give up


async def fleet_events(
    services: Services, token: TokenRecord, last_id: str = ""
) -> AsyncIterator[bytes]:
    """Fleet views for one client, until it goes, its token is revoked or the server stops."""
    has = services.mirror.version if last_id == str(services.mirror.revision) else -1
    silent_s = 0.0
    while _goes_on(services, token):
        version = services.mirror.version
        if version != has:
            has, silent_s = version, 0.0
            end = f"\nid: {services.mirror.revision}\n\n".encode()
            yield b"event: fleet\ndata: " + services.fleet_json(token) + end
            await services.clock.sleep(INTERVAL_S)
            continue
        silent_s += await _wait(services, version)
        if silent_s >= HEARTBEAT_S:
            silent_s = 0.0
            yield f": alive {services.mirror.age_s()}\n\n".encode()


async def log_events(
    services: Services, token: TokenRecord, subject: str | None, last_id: str = ""
) -> AsyncIterator[bytes]:
    """Records of the event log after `last_id`, and then every new one."""
    silent_s = 0.0
    found = views.events(services.seen_by(token), subject)
    # Clocks of nodes differ, so a new record may carry an older time than the last one sent.
    sent = {event["id"] for event in found if event["id"] <= last_id}
    while _goes_on(services, token):
        version = services.mirror.version
        found = views.events(services.seen_by(token), subject)
        for event in sorted(found, key=lambda e: e["id"]):
            if event["id"] not in sent:
                sent.add(event["id"])
                silent_s = 0.0
                yield f"event: event\nid: {event['id']}\ndata: {json.dumps(event)}\n\n".encode()
        sent &= {event["id"] for event in found}  # the log forgets; so do we
        silent_s += await _wait(services, version)
        if silent_s >= HEARTBEAT_S:
            silent_s = 0.0
            yield b": alive\n\n"


async def transition_events(
    services: Services, token: TokenRecord, operation_id: str, seconds: float
) -> AsyncIterator[bytes]:
    """One operation whenever it changed, until it is final or unknown, or the time is over."""
    told, silent_s, end_s = b"", 0.0, services.clock.monotonic() + seconds
    while _goes_on(services, token):
        version = services.mirror.control_version
        view = views.operation(operation_id, services.seen_by(token), services.limits)
        if view is None:
            return
        body = json.dumps(view, separators=(",", ":")).encode()
        if body != told:
            told, silent_s = body, 0.0
            yield b"event: transition\ndata: " + body + b"\n\n"
        started_s = services.clock.monotonic()
        if view["final"] or started_s >= end_s:
            return
        await services.mirror.control_changed_since(version, min(LOOK_S, end_s - started_s))
        silent_s += services.clock.monotonic() - started_s
        if silent_s >= HEARTBEAT_S:
            silent_s = 0.0
            yield b": alive\n\n"


def _goes_on(services: Services, token: TokenRecord) -> bool:
    return not services.stopping.is_set() and token in services.mirror.tokens()


async def _wait(services: Services, version: int) -> float:
    """Until something changed, a second at most; returns the seconds waited."""
    started = services.clock.monotonic()
    await services.mirror.changed_since(version, LOOK_S)
    return services.clock.monotonic() - started
