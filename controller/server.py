"""The controller process: store, mirror, loop and API wired together and ended in order.

    python -m moectl.controller.server --config FILE

One asyncio loop runs everything. SIGTERM and SIGINT end it gracefully: watches are told, leadership
is given back so that a standby takes over at once, then the store is closed. Killed hard, nothing
is lost: all state is in the store.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvicorn

from ..core import heap
from ..core.clock import Clock, SystemClock
from ..core.errors import MoectlError, RefusedError, StoreError
from ..core.priority import GENTLE_NICE, Bystanders, SessionPriority
from ..core.records import EndpointRecord, Keys, TokenRecord, to_json
from ..core.store.etcd import EtcdStore
from ..core.store.protocol import Store, put_op, version_is
from .api.app import create_app
from .api.audit import to_file
from .api.services import Services
from .commit import Committer
from .config import Limits, ServerConfig, load_server_config
from .loop import Identity, Loop
from .model_facts import FactsReader
from .observe import Mirror

LOG = logging.getLogger(__name__)
RETRY_S = 0.3  # while the store is not there yet: etcd starts beside us
END_S = 3.0  # for open requests at the end; watches are told to finish at once


class QuietServer(uvicorn.Server):
    """uvicorn without its own signal handlers: this process has one place that ends it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `serve`."""
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until a signal; returns the exit code."""
    parser = argparse.ArgumentParser(prog="moectl.controller.server", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="JSON settings file")
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        config = load_server_config(options.config)
        listener = listen(config.host, config.port)
        SessionPriority().lower(GENTLE_NICE)  # where it shares a machine with nodes, they serve
        heap.settle()
        asyncio.run(serve(config, listener))
    except MoectlError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; raises RefusedError when the port is taken."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise RefusedError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            next_step="end what uses the port, or set another one",
        ) from error
    listener.set_inheritable(False)
    return listener


async def serve(config: ServerConfig, listener: socket.socket) -> None:
    """Wire the parts, run until SIGTERM or SIGINT, end them in order."""
    store = EtcdStore(config.etcd, security=config.etcd_security)
    stop = asyncio.Event()
    running_loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        running_loop.add_signal_handler(number, stop.set)
    try:
        await run(config, listener, store, SystemClock(), stop)
    finally:
        await store.close()


async def run(
    config: ServerConfig, listener: socket.socket, store: Store, clock: Clock, stop: asyncio.Event
) -> None:
    """The running controller over any store, until `stop` is set."""
    keys, limits = Keys(config.cluster), Limits()
    mirror = Mirror(store, keys, clock)
    host, port = listener.getsockname()[:2]
    scheme = "https" if config.tls_cert_file else "http"
    endpoint = EndpointRecord("controller", f"{scheme}://{host}:{port}", os.getpid())
    identity = Identity(f"{socket.gethostname()}:{os.getpid()}", endpoint, config.lease_ttl_s)
    committer, facts = Committer(store, keys, clock), FactsReader()
    bystanders = Bystanders(lambda: [os.getpid()])
    loop = Loop(mirror, committer, identity, limits, facts, bystanders)
    services = Services(config.cluster, mirror, committer, clock, limits, loop, facts)
    services.audit = to_file(Path(config.audit_file)) if config.audit_file else None
    server = QuietServer(
        uvicorn.Config(
            create_app(services),
            log_level="warning",
            access_log=False,  # an access log would hold what people ask for, at no use to us
            ssl_certfile=config.tls_cert_file or None,
            ssl_keyfile=config.tls_key_file or None,
            timeout_graceful_shutdown=int(END_S),
        )
    )
    work = [
        asyncio.create_task(mirror.run(), name="mirror"),
        asyncio.create_task(loop.run(), name="loop"),
        asyncio.create_task(ensure_admin(store, keys, clock, config), name="admin-token"),
    ]
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="api")
    LOG.info("controller of cluster %s listens on %s", config.cluster, endpoint.url)
    try:
        await _until_stopped(stop, [*work[:2], serving])
    finally:
        services.stopping.set()
        server.should_exit = True
        for task in reversed(work):
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await asyncio.wait({serving}, timeout=END_S + 2)


async def _until_stopped(stop: asyncio.Event, parts: Sequence[asyncio.Task[None]]) -> None:
    """Until a signal; a part that ends by itself ends the process with its error."""
    waiting = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({waiting, *parts}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    for part in parts:
        if part.done() and not stop.is_set():
            part.result()
            raise RefusedError(f"the controller's {part.get_name()} ended", next_step="see its log")


async def ensure_admin(store: Store, keys: Keys, clock: Clock, config: ServerConfig) -> None:
    """Let the admin token of the settings in, once; waits for the store to be up.

    Once, so that a restart does not bring back a token that was revoked. Other settings name
    another token: that is the way back in for who has lost all of theirs.
    """
    digest = config.admin_token_digest
    mark, record = keys.admitted_of(digest), TokenRecord("admin", "admin", "default", clock.now())
    puts = [put_op(keys.token(digest), to_json(record)), put_op(mark, "")]
    while True:
        try:
            await store.transaction([version_is(mark, 0)], puts)
            return
        except StoreError as error:
            LOG.info("waiting for the store: %s", error.message)
            await clock.sleep(RETRY_S)


if __name__ == "__main__":
    sys.exit(main())
