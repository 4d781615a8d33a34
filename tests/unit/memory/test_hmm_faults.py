"""Can any client hurt another one, or the HMM itself?"""

import json
import os
import random
import socket
import struct
from pathlib import Path

import pytest

from moectl.core.errors import MoectlError, ProtocolError
from moectl.memory.hmm import wire
from moectl.memory.hmm.connection import Connection
from moectl.memory.hmm.holdings import DeviceSpec
from moectl.memory.hmm.table import Session, Table
from moectl.memory.host import HostBackend

from .conftest import RunningHmm, eventually, open_fds

# `MOECTL_FUZZ_MESSAGES=100000 pytest tests/unit/memory/test_hmm_faults.py` is the long run.
MESSAGES = int(os.environ.get("MOECTL_FUZZ_MESSAGES", "6000"))
SEED = 20250209
OPS = [
    "hello", "device", "reserve", "commit", "forfeit", "free", "rename_owner", "pages_of", "trim",
    "put_layout", "get_layout", "drop_layout", "layouts", "channel", "drop_channel", "usage",
    "check", "nonsense", "share", "claims", "ask", "keep_claims", "room", "wanted", "offer",
    "resume", "recovery", "owners",
]  # fmt: skip
KEYS = ["device", "pages", "owner", "reservation", "name", "layouts", "drop_layouts", "old", "new",
        "ranks", "bytes_per_rank", "prefix", "share", "claims", "model", "reservations", "first",
        "count", "process"]  # fmt: skip
VALUES = [
    None, True, -1, 0, 1, 3, 2**63, 10**30, 1.5, "", "d0", "a/kv", "\u0000", "\ud800", "x" * 300,
    {"a/kv": [5, 1.5]}, {"a/kv": [None, 1]}, [1, 2],
    [], [[0, 1]], [[0, 2**40]], [[-1, 1]], [["a", None]], {}, {"a": {}}, {"a": 1}, {"": {}}, ["a"],
]  # fmt: skip


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(10)
    assert eventually(lambda: sock.connect_ex(str(path)) == 0)
    return sock


def read_to_the_end(sock: socket.socket) -> bytes:
    data = bytearray()
    try:
        while piece := sock.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return bytes(data)


def frame(body: bytes, version: int = wire.VERSION) -> bytes:
    return struct.pack(">IB", len(body) + 1, version) + body


def a_request(rng: random.Random) -> dict[str, object]:
    request: dict[str, object] = {key: rng.choice(VALUES) for key in rng.sample(KEYS, 9)}
    return {"op": rng.choice(OPS), **request}


def garbage(rng: random.Random) -> bytes:
    """One broken message: random bytes, broken frames, cut frames, or other versions."""
    body = json.dumps(a_request(rng)).encode()
    kind = rng.randrange(7)
    if kind == 0:
        return rng.randbytes(rng.randrange(1, 200))
    if kind == 1:
        return struct.pack(">I", rng.choice([0, 2**32 - 1, wire.FRAME_BYTES_MAX + 1])) + body
    if kind == 2:
        return frame(body)[: rng.randrange(1, len(body))]
    if kind == 3:
        return frame(body, version=rng.choice([0, 2, 255]))
    if kind == 4:
        return frame(rng.randbytes(rng.randrange(0, 100)))
    if kind == 5:
        return frame(b"[" * 3000)
    return frame(body)  # well-formed, and no greeting before it


HELLO = wire.pack({"op": "hello", "name": "fuzz"})


def test_garbage_ends_only_the_connection_that_sent_it(hmm: RunningHmm) -> None:
    rng = random.Random(SEED)
    witness = hmm.client("witness")
    kept = witness.reserve("d0", 7, "chat/kv").commit({"kv:chat:d0": {"n": 7}})
    fds = open_fds(hmm.process.pid)
    for number in range(MESSAGES // 3):
        with connect(hmm.socket) as sock:
            try:
                sock.sendall(HELLO if rng.random() < 0.5 else b"")
                for _ in range(3):
                    sock.sendall(garbage(rng))
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has hung up on us already, as it should
        if number % 100 == 0:
            witness.check()
    assert witness.pages_of("d0", "chat/kv") == kept
    assert witness.get_layout("kv:chat:d0") == {"n": 7}
    for name in witness.call({"op": "usage"})["channels"]:  # a lucky message may have made one
        witness.drop_channel(name)
    assert eventually(lambda: open_fds(hmm.process.pid) == fds)
    assert hmm.process.poll() is None


def test_well_formed_nonsense_never_breaks_the_table() -> None:
    rng = random.Random(SEED)
    table = Table("n1", {"cpu": HostBackend()})
    for device in ("d0", "d1"):
        table.state.create(DeviceSpec(device, 64 * 16384, 16384))
    sessions = [Session() for _ in range(4)]
    answers = 0
    for number in range(MESSAGES):
        session = rng.choice(sessions)
        request = json.loads(json.dumps(a_request(rng)))
        try:
            answer = table.answer(session, request)
            wire.pack(answer.body)
            answers += 1
        except MoectlError:
            pass
        if rng.random() < 0.02:
            table.end(session)
            session.name = rng.choice(["", "fuzz"])  # one that has said hello gets further
        if number % 50 == 0:
            table.check()
    assert answers > MESSAGES // 100  # some of it must make sense, or nothing is tried
    for session in sessions:
        table.end(session)
    table.check()
    table.close()


def test_another_version_is_told_so_before_the_connection_ends(hmm: RunningHmm) -> None:
    with connect(hmm.socket) as sock:
        sock.sendall(frame(b'{"op":"hello","name":"old"}', version=9))
        reply = wire.unpack(read_to_the_end(sock)[4:])
    assert reply["error"]["type"] == "ProtocolError"
    assert "version 9" in reply["error"]["message"]


def test_the_first_message_must_be_hello_and_small(hmm: RunningHmm) -> None:
    for first in (wire.pack({"op": "usage"}), struct.pack(">I", 5000)):
        with connect(hmm.socket) as sock:
            sock.sendall(first)
            assert wire.unpack(read_to_the_end(sock)[4:])["ok"] is False


def test_a_client_that_asks_without_reading_is_dropped(hmm: RunningHmm) -> None:
    witness = hmm.client()
    witness.put_layout("big", {"text": "x" * (2 << 20)})
    with connect(hmm.socket) as sock:
        sock.sendall(HELLO)
        ask = wire.pack({"op": "get_layout", "name": "big"}) * 400
        with pytest.raises((BrokenPipeError, ConnectionResetError, TimeoutError)):
            for _ in range(200):
                sock.sendall(ask)
                witness.check()
    witness.check()


def test_descriptors_that_a_client_sends_are_not_kept(hmm: RunningHmm) -> None:
    witness = hmm.client()
    before = open_fds(hmm.process.pid)
    with connect(hmm.socket) as sock:
        socket.send_fds(sock, [HELLO], [0, 1, 2])
        assert sock.recv(4)
        witness.check()
        assert open_fds(hmm.process.pid) == before + 1


def test_connections_have_a_limit_and_places_become_free_again(hmm: RunningHmm) -> None:
    witness = hmm.client()
    idle = [connect(hmm.socket) for _ in range(255)]
    with connect(hmm.socket) as sock:
        assert read_to_the_end(sock) == b""
    for sock in idle:
        sock.close()
    assert eventually(lambda: _can_enter(hmm))
    witness.check()


def _can_enter(hmm: RunningHmm) -> bool:
    try:
        hmm.client().check()
    except MoectlError:
        return False
    return True


def connection_pair() -> tuple[Connection, socket.socket]:
    ours, theirs = socket.socketpair()
    return Connection(ours, Table("n1", {"cpu": HostBackend()})), theirs


def test_a_half_sent_message_has_a_deadline_and_progress_renews_it() -> None:
    connection, peer = connection_pair()
    for now, data, deadline in (
        (100.0, HELLO[:3], 110.0),
        (105.0, HELLO[3:9], 110.0),
        (106.0, HELLO[9:] + HELLO[:2], 116.0),
        (107.0, HELLO[2:], None),
    ):
        peer.sendall(data)
        connection.read()
        connection.write()
        connection.set_deadline(now)
        assert connection.deadline == deadline
    connection.sock.close()
    peer.close()


def test_a_stream_is_cut_into_the_same_messages_wherever_it_is_torn() -> None:
    messages = [{"op": "a", "n": n, "text": "é" * n} for n in range(40)]
    stream = b"".join(wire.pack(message) for message in messages)
    rng = random.Random(SEED)
    for _ in range(20):
        reader, found, at = wire.FrameReader(), [], 0
        while at < len(stream):
            step = rng.randrange(1, 300)
            reader.feed(stream[at : at + step])
            at += step
            while (message := reader.next()) is not None:
                found.append(message)
        assert found == messages and not reader.is_mid_message


@pytest.mark.parametrize("stream", [b"\0\0\0\0x", b"\xff\xff\xff\xff", frame(b"[]"), frame(b"")])
def test_broken_frames_are_protocol_errors(stream: bytes) -> None:
    reader = wire.FrameReader()
    reader.feed(stream)
    with pytest.raises(ProtocolError):
        reader.next()
