"""What a node's workers are told of a transition, over real sockets."""

import asyncio
import contextlib
import os

import pytest

from moectl.agents import perform
from moectl.agents.actions import Outcome, Tell, Word
from moectl.agents.perform import Hands, Performer
from moectl.agents.wire import encode, read_message
from moectl.agents.worker import LocalWorker
from moectl.core.paths import process_id
from moectl.core.plan import DeviceId, Phase, Placement, Prediction, TransitionKind
from moectl.core.records import TransitionRecord, from_plain

DEVICES = tuple(DeviceId("n1", name) for name in ("d0", "d1", "d2"))
NEW = Placement("chat", 4, DEVICES, (((0,), (1,), (2,)),), (1, 1, 1))
RECORD = TransitionRecord(
    operation_id="op-1",
    model="chat",
    kind=TransitionKind.SCALE,
    phase=Phase.PREPARE,
    generation=2,
    old=None,
    new=NEW,
    steps=(),
    prediction=Prediction(0, 0, 0, {}, 0.0, 0.0, 0),
    accepted_at=1.0,
    phase_at={},
    deadline_at=9.0,
    store_address="",
    model_spec={"source": {"path": "/models/chat"}},
)
STATUS = {"state": "prepared", "epoch": -1, "rank": -1, "data_address": ""}


@pytest.fixture
async def workers(tmp_path):
    """A worker of this very process per device: each answers, and says that it is prepared."""
    told: list[dict] = []

    async def serve(reader, writer) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                message = await read_message(reader)
                writer.write(encode({"id": message["id"], "ok": True, **STATUS}))
                if message["op"] == "prepare":
                    told.append(message["transition"])
                    writer.write(encode({"event": "prepared", "operation_id": "op-1"}))

    found, servers = {}, []
    for device in DEVICES:
        path = tmp_path / device.device
        servers.append(await asyncio.start_unix_server(serve, str(path)))
        found[device] = LocalWorker("chat", device, 1, process_id(os.getpid()), lambda worker: None)
        found[device].watch(path)
    yield found, told
    for worker in found.values():
        await worker.close()
    for server in servers:
        server.close()


async def test_a_transition_is_encoded_once_for_all_workers_and_read_as_it_was(
    workers, monkeypatch
) -> None:
    found, told = workers
    encoded: list[TransitionRecord] = []
    real = perform.to_json
    monkeypatch.setattr(perform, "to_json", lambda record: encoded.append(record) or real(record))
    changed = asyncio.Event()
    hands = Hands(
        find=lambda action, transition: found[action.device],
        spawn=None,
        stop=None,
        free=None,
        answer=None,
        on_change=changed.set,
    )
    performer = Performer(hands)
    performer.start(RECORD, [Tell("op-1", device, Word.PREPARE) for device in DEVICES])
    async with asyncio.timeout(10):
        while len(performer.outcomes("op-1")) < len(DEVICES):
            changed.clear()
            await changed.wait()
    assert all(outcome == Outcome(True) for outcome in performer.outcomes("op-1").values())
    assert [from_plain(TransitionRecord, each) for each in told] == [RECORD] * len(DEVICES)
    assert len(encoded) == 1
    await performer.close()
