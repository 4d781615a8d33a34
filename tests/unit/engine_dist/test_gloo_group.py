"""A group of gloo knows its own connections, whatever else this process opens meanwhile."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch import distributed

from moectl.agents.engine.comm.base import CONTROL_WORDS
from moectl.agents.engine.comm.gloo import GlooExchange, GlooGroup, Rendezvous
from moectl.core.errors import ExchangeBrokenError

ADDRESSES = ("127.0.0.11", "127.0.0.12")
DEADLINE_S = 10.0


@pytest.fixture
def store() -> Iterator[str]:
    server = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield f"127.0.0.1:{server.port}"


def listen_low(address: str) -> socket.socket:
    """At a port below all that the kernel gives out."""
    for port in range(20000, 20200):
        try:
            return socket.create_server((address, port))
        except OSError:
            continue
    raise AssertionError("no port is free")


def test_an_abort_ends_a_group_beside_whose_formation_others_began_to_listen(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = distributed.ProcessGroupGloo
    create_device = kind.create_device
    others: list[socket.socket] = []

    def not_alone(hostname: str) -> object:
        others.append(listen_low(hostname))
        return create_device(hostname=hostname)

    monkeypatch.setattr(kind, "create_device", not_alone)

    def form(rank: int) -> GlooExchange:
        meeting = Rendezvous(store, "group", rank, 2, ADDRESSES[rank])
        return GlooExchange(GlooGroup(meeting, DEADLINE_S), None, DEADLINE_S)

    with ThreadPoolExecutor(2) as pool:
        ranks = list(pool.map(form, range(2)))
    timer = threading.Timer(0.1, ranks[1].abort, ("told to",))
    timer.start()
    started = time.monotonic()
    with pytest.raises(ExchangeBrokenError):
        ranks[0].gather_control([0] * CONTROL_WORDS)
    assert time.monotonic() - started < DEADLINE_S / 2
    timer.join(DEADLINE_S)
    for each in (*ranks, *others):
        each.close()
