"""The small parts: ledger, routing, mailbox, framing, changes, settings."""

import asyncio
import json

import pytest

from moectl.agents.changes import Changes
from moectl.agents.gateway.config import gateway_config_from_plain, load_gateway_config
from moectl.agents.gateway.ledger import Ledger
from moectl.agents.gateway.route import Candidate, choose
from moectl.agents.gateway.stream import OVERFLOW, TokenStream
from moectl.agents.wire import FRAME_BYTES_MAX, encode, read_message
from moectl.core.errors import ProtocolError, UsageError
from moectl.core.transitions import WorkerState


def candidate(device, *, state=WorkerState.SERVING, load=0, epoch=1, listed=True, connected=True):
    return Candidate(f"{device}:1", device, state, epoch, listed, connected, load)


def chosen(candidates, avoid=()):
    best = choose(candidates, frozenset(f"{device}:1" for device in avoid))
    return best and best.device


def test_the_ledger_drops_repeats_and_refuses_gaps_and_changes():
    ledger = Ledger(max_tokens=5, eos_ids=frozenset({9}))
    assert ledger.accept(0, 4) and ledger.accept(1, 5)
    assert not ledger.accept(0, 4) and ledger.dropped == 1
    with pytest.raises(ProtocolError, match="lost"):
        ledger.accept(3, 6)
    with pytest.raises(ProtocolError, match="differs"):
        ledger.accept(1, 6)
    assert ledger.accepted == [4, 5]


def test_the_ledger_knows_the_end_from_the_tokens_alone():
    ledger = Ledger(max_tokens=3, eos_ids=frozenset({9}))
    ledger.accept(0, 9)
    assert ledger.finish_reason == "stop"
    assert not ledger.accept(1, 5) and ledger.accepted == [9]
    full = Ledger(max_tokens=1, eos_ids=frozenset())
    full.accept(0, 9)
    assert full.finish_reason == "length"


def test_the_least_loaded_serving_worker_is_chosen():
    fleet = [candidate("n1/d1", load=2), candidate("n1/d0", load=3), candidate("n2/d0", load=2)]
    assert chosen(fleet) == "n1/d1"
    assert chosen(fleet, {"n1/d1", "n2/d0"}) == "n1/d0"


def test_workers_that_cannot_take_requests_are_never_chosen():
    others = [state for state in WorkerState if state is not WorkerState.SERVING]
    assert choose([candidate(f"n/{state}", state=state) for state in others]) is None
    assert choose([candidate("n1/d0", connected=False)]) is None


def test_an_unlisted_worker_is_the_last_resort():
    unlisted = candidate("n1/d0", listed=False)
    assert chosen([unlisted, candidate("n1/d1", load=50)]) == "n1/d1"
    assert chosen([unlisted]) == "n1/d0"


async def test_a_full_mailbox_ends_the_request():
    stream = TokenStream("r", tokens_max=2)
    assert stream.push(0, 5) and stream.push(1, 6)
    assert not stream.push(2, 7)
    stream.finish("length")
    bunch = await stream.next()
    assert [told.token for told in bunch.tokens] == [5, 6] and bunch.done == OVERFLOW


async def test_a_change_between_look_and_wait_is_not_missed():
    changes = Changes()
    ticket = changes.ticket()
    changes.notify()
    assert await changes.wait(ticket, 0.0)
    assert not await changes.wait(changes.ticket(), 0.01)


async def read_frame(raw: bytes):
    reader = asyncio.StreamReader()
    reader.feed_data(raw)
    reader.feed_eof()
    return await read_message(reader)


async def test_frames_come_back_and_bad_ones_are_refused():
    assert await read_frame(encode({"a": [1, "ü"]})) == {"a": [1, "ü"]}
    with pytest.raises(ProtocolError, match="announced"):
        await read_frame((FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
    with pytest.raises(ProtocolError, match="not JSON"):
        await read_frame(b"\0\0\0\1{")
    with pytest.raises(ProtocolError, match="expected an object"):
        await read_frame(b"\0\0\0\2[]")
    with pytest.raises(asyncio.IncompleteReadError):
        await read_frame(b"\0\0\0\5{")
    with pytest.raises(ProtocolError, match="above the limit"):
        encode({"a": "x" * FRAME_BYTES_MAX})


def test_settings_are_checked(tmp_path):
    good = {"cluster": "c", "etcd": ["127.0.0.1:1"], "secret_file": "k", "port": 8080}
    path = tmp_path / "gateway.json"
    path.write_text(json.dumps(good))
    assert load_gateway_config(path).port == 8080
    for bad in (
        {**good, "prot": 1},
        {"cluster": "c"},
        {**good, "etcd": []},
        [],
        {**good, "port": -1},
    ):
        with pytest.raises(UsageError):
            gateway_config_from_plain(bad)
    with pytest.raises(UsageError, match=r"none\.json"):
        load_gateway_config(tmp_path / "none.json")
