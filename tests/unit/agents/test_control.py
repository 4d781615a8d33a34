"""The control connection over a real Unix socket: calls, events, breaks."""

import asyncio
import contextlib
import json

import pytest

from moectl.agents.control import Control
from moectl.agents.wire import encode, read_message
from moectl.core.errors import DeadlineError, WorkerError


class Peer:
    """A worker's side of the socket: answers what its script says."""

    def __init__(self, path):
        self.path = path
        self.writers = []
        self.heard = []
        self.server = None

    async def start(self):
        self.path.unlink(missing_ok=True)
        self.server = await asyncio.start_unix_server(self._serve, str(self.path))

    async def _serve(self, reader, writer):
        self.writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                message = await read_message(reader)
                self.heard.append(message["op"])
                if message["op"] == "break":
                    writer.close()
                    return
                if message["op"] != "mute":
                    ok = message["op"] != "refuse"
                    reply = {"id": message["id"], "ok": ok, "error": "no", "echo": message}
                    writer.write(encode(reply))

    async def stop(self):
        for writer in self.writers:
            writer.close()
        self.server.close()
        await self.server.wait_closed()


@pytest.fixture
async def pair(tmp_path):
    events = []
    peer = Peer(tmp_path / "w.sock")
    control = Control(peer.path, events.append)
    control.start()
    yield peer, control, events
    await control.close()
    if peer.server is not None:
        await peer.stop()


async def test_a_field_that_is_encoded_already_arrives_like_any_other(pair):
    peer, control, _events = pair
    await peer.start()
    told = {"name": 'a "quoted" ä', "steps": [1, {"x": None}]}
    ready = {"transition": json.dumps(told), "second": "2"}
    reply = await control.call("prepare", ready=ready, epoch=3)
    echo = reply["echo"]
    assert (echo["transition"], echo["second"], echo["epoch"]) == (told, 2, 3)


async def test_calls_wait_for_the_worker_and_return_its_reply(pair):
    peer, control, _events = pair
    waiting = asyncio.create_task(control.call("status", a=1))
    await asyncio.sleep(0.05)
    await peer.start()
    reply = await waiting
    assert reply["echo"]["a"] == 1
    replies = await asyncio.gather(*(control.call("status", n=n) for n in range(50)))
    assert [reply["echo"]["n"] for reply in replies] == list(range(50))


async def test_a_no_a_break_and_silence_are_three_different_errors(pair):
    peer, control, _events = pair
    await peer.start()
    with pytest.raises(WorkerError, match="refuse: no"):
        await control.call("refuse")
    with pytest.raises(WorkerError, match="broke"):
        await control.call("break")
    with pytest.raises(DeadlineError, match="mute"):
        await control.call("mute", 0.05)
    assert (await control.call("status"))["ok"]
    assert control.connections == 2


async def test_events_reach_their_reader_also_after_a_reconnection(pair):
    peer, control, events = pair
    await peer.start()
    await control.call("status")
    peer.writers[-1].write(encode({"event": "prepared", "operation_id": "a"}))
    with pytest.raises(WorkerError):
        await control.call("break")
    await control.call("status")
    peer.writers[-1].write(encode({"event": "committed", "operation_id": "a"}))
    await control.call("status")
    assert [event["event"] for event in events] == ["prepared", "committed"]
