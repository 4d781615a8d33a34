"""How does a client follow the fleet? Server-sent events with one FleetView each.

Every event is complete, so a client that reconnects has lost nothing. At most five a second,
whatever happens in the store; a comment as heartbeat when nothing does.
"""

from collections.abc import AsyncIterator

from .services import Services

INTERVAL_S = 0.2  # between two events: five a second look live on a screen
HEARTBEAT_S = 5.0  # well under the 30 s after which clients and proxies give up


async def fleet_events(services: Services) -> AsyncIterator[bytes]:
    """Events for one client, until it goes or the server stops."""
    sent = -1
    silent_s = 0.0
    while not services.stopping.is_set():
        version = services.mirror.version
        if version != sent:
            sent, silent_s = version, 0.0
            yield b"event: fleet\ndata: " + services.fleet_json() + b"\n\n"
            await services.clock.sleep(INTERVAL_S)
            continue
        started = services.clock.monotonic()
        await services.mirror.changed_since(version, INTERVAL_S * 5)
        silent_s += services.clock.monotonic() - started
        if silent_s >= HEARTBEAT_S:
            silent_s = 0.0
            yield b": alive\n\n"
