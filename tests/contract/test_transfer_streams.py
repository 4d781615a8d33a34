"""Do weights arrive whole over streams between nodes, and does nobody wait for who is gone?

Real sockets and a real TCPStore; threads stand for the workers of the nodes.
"""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import distributed

from moectl.agents.engine import streams
from moectl.agents.engine.comm.gloo import Rendezvous, abandon_meeting
from moectl.agents.engine.transfer import Transfer, partners
from moectl.core.errors import ExchangeBrokenError
from moectl.core.plan import DeviceId, Part, Step, StepKind

N1, N2 = "127.0.0.11", "127.0.0.12"
A, B, C = DeviceId("n1", "d0"), DeviceId("n2", "d0"), DeviceId("n2", "d1")
DEADLINE_S = 20.0
SIZE = 3_000_001  # no multiple of anything


@pytest.fixture
def store():
    server = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return f"127.0.0.1:{server.port}", server


def _step(source, target, expert):
    return Step(StepKind.COPY, Part.EXPERT, target, SIZE, 0, expert, source)


# Both directions between A and B, and one to C: whoever sent all before receiving would hang.
STEPS = (_step(A, B, 0), _step(B, A, 1), _step(A, C, 2), _step(A, B, 3), _step(B, A, 4))


def _join(address, device, steps=STEPS, deadline_s=DEADLINE_S):
    bind = N1 if device.node == "n1" else N2
    return Transfer.join(address, "op/transfer", device, steps, bind, deadline_s)


def _bytes_of(expert):
    return torch.randint(0, 256, (SIZE,), generator=torch.Generator().manual_seed(expert)).to(
        torch.uint8
    )


def _take_part(address, device):
    transfer = _join(address, device)
    got = {}
    try:
        for step in STEPS:
            if step.source == device:
                transfer.send(_bytes_of(step.expert), step.target)
            elif step.target == device:
                got[step.expert] = torch.empty(SIZE, dtype=torch.uint8)
                transfer.receive(got[step.expert], step.source)
        return got, transfer.bytes_sent, transfer.bytes_received
    finally:
        transfer.close()


def test_every_member_gets_its_bytes_whole_in_both_directions(store):
    address, _ = store
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda device: _take_part(address, device), (A, B, C)))
    received = {}
    for got, _, _ in results:
        received |= got
    assert sorted(received) == [0, 1, 2, 3, 4]
    assert all(torch.equal(data, _bytes_of(expert)) for expert, data in received.items())
    assert sum(sent for _, sent, _ in results) == 5 * SIZE
    assert sum(taken for _, _, taken in results) == 5 * SIZE


def test_only_devices_with_a_step_between_them_meet():
    assert partners(STEPS, A) == {B, C}
    assert partners(STEPS, C) == {A}
    assert partners(STEPS, DeviceId("n3", "d0")) == frozenset()


def test_an_abort_ends_the_wait_of_both_sides(store):
    address, _ = store
    with ThreadPoolExecutor(2) as pool:
        steps = (_step(A, B, 0),)
        sender, receiver = pool.map(lambda device: _join(address, device, steps), (A, B))
        waiting = pool.submit(receiver.receive, torch.empty(SIZE, dtype=torch.uint8), A)
        sender.abort("forfeited")
        with pytest.raises(ExchangeBrokenError, match="the peer closed"):
            waiting.result(DEADLINE_S)
        with pytest.raises(ExchangeBrokenError, match="forfeited"):
            sender.send(_bytes_of(0), B)
        sender.close()
        receiver.close()


def test_a_member_that_does_not_come_is_named_within_the_deadline(store):
    address, _ = store
    with pytest.raises(ExchangeBrokenError, match=r"rank 0 of 2 could not meet ranks \[1\]"):
        _join(address, A, (_step(A, B, 0),), deadline_s=0.5)


def test_a_caller_without_the_secret_is_sent_away_and_the_meeting_goes_on(store):
    address, server = store
    meeting = Rendezvous(address, "guarded", 0, 2, N1)
    met = {}

    def host():
        met.update(streams.open_streams(meeting, [1], DEADLINE_S))

    thread = threading.Thread(target=host)
    thread.start()
    published = distributed.PrefixStore("guarded", server).get("stream/0").decode()
    where, port, _ = published.split(" ")
    with socket.create_connection((where, int(port)), 5) as stranger:
        stranger.sendall(b"\0" * 36)
        assert stranger.recv(1) == b""  # closed on us
    guest = streams.open_streams(Rendezvous(address, "guarded", 1, 2, N2), [0], DEADLINE_S)
    thread.join(DEADLINE_S)
    assert list(met) == [1]
    guest[0].sendall(b"x")
    assert met[1].recv(1) == b"x"
    for stream in (*guest.values(), *met.values()):
        stream.close()


def test_a_forfeit_ends_the_wait_for_a_member_that_will_never_call(store):
    address, _ = store
    with ThreadPoolExecutor(1) as pool:
        # A is the lower rank: it listens for B, which is dead.
        waiting = pool.submit(_join, address, A, (_step(A, B, 0),))
        with pytest.raises(TimeoutError):
            waiting.result(0.5)
        abandon_meeting(address)
        with pytest.raises(ExchangeBrokenError, match="could not meet"):
            waiting.result(5.0)  # far below the deadline of the meeting
