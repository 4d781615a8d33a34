"""A hub serves many peers on one thread, and a bad one costs nobody else anything."""

import json
import queue
import socket

import pytest

from moectl.agents.engine.frames import FRAME_BYTES_MAX, FrameReader, encode
from moectl.agents.engine.hub import OUTBOX_BYTES_MAX, Hub
from moectl.core.errors import ProtocolError


def receive(sock):
    reader, messages = FrameReader(), []
    while not messages:
        data = sock.recv(1 << 16)
        assert data, "the hub closed the connection"
        messages += reader.feed(data)
    return messages[0]


@pytest.fixture
def hub():
    """A hub that answers every message with itself; `closed` gets each peer that is gone."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    closed = queue.Queue()
    running = Hub("test", listener, lambda peer, m: running.send(peer, m), closed.put)
    running.start()
    yield running, address, closed
    running.close()


def test_messages_come_back_to_the_peer_that_sent_them(hub):
    peers = [socket.create_connection(hub[1], 10) for _ in range(5)]
    for number, sock in enumerate(peers):
        sock.sendall(encode({"n": number}))
    assert [receive(sock) for sock in peers] == [{"n": n} for n in range(5)]
    for sock in peers:
        sock.close()
    for _ in peers:
        hub[2].get(timeout=10)


def test_a_frame_in_pieces_and_several_frames_at_once_are_understood(hub):
    with socket.create_connection(hub[1], 10) as sock:
        frame = encode({"text": "x" * 1000})
        for at in range(0, len(frame), 100):
            sock.sendall(frame[at : at + 100])
        assert receive(sock) == {"text": "x" * 1000}


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x02{]", b"\x00\x00\x00\x021 "]
)
def test_nonsense_ends_its_own_connection_only(hub, data):
    with (
        socket.create_connection(hub[1], 10) as good,
        socket.create_connection(hub[1], 10) as bad,
    ):
        bad.sendall(data)
        assert bad.recv(10) == b""
        good.sendall(encode({"still": "here"}))
        assert receive(good) == {"still": "here"}


def test_a_peer_that_never_reads_is_dropped_and_the_hub_goes_on(hub):
    running, address, closed = hub
    with (
        socket.create_connection(address, 10) as lazy,
        socket.create_connection(address, 10) as good,
    ):
        lazy.sendall(encode({"first": 1}))
        receive(lazy)
        big = {"text": "x" * (1 << 20)}
        for _ in range(OUTBOX_BYTES_MAX // (1 << 20) + 40):
            running.broadcast(big)
        assert closed.get(timeout=30).is_open is False
    with socket.create_connection(address, 10) as good:
        good.sendall(encode({"still": "here"}))
        assert receive(good) == {"still": "here"}


def test_a_frame_above_the_limit_is_refused_before_it_is_sent():
    with pytest.raises(ProtocolError, match="at most"):
        encode({"text": "x" * FRAME_BYTES_MAX})
    assert list(FrameReader().feed(b"\x00\x00\x00\x02{}")) == [json.loads("{}")]
