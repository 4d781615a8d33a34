"""One question a second to a worker tells its counters and how it is."""

import asyncio
import contextlib
import os

import pytest

from moectl.agents.stats import gather_stats
from moectl.agents.wire import encode, read_message
from moectl.agents.worker import LocalWorker
from moectl.core.clock import SystemClock
from moectl.core.paths import process_id
from moectl.core.plan import DeviceId
from moectl.core.records import WorkerStats, to_plain
from moectl.core.transitions import WorkerState

COUNTERS = WorkerStats("chat", 1, "n1/d0", 3, 0, 0, 5, 4, 2, 1.0, 2.0, 0, 8, ((1, 2),))
STATUS = {"state": "serving", "epoch": 3, "rank": 1, "data_address": "127.0.0.1:5"}


@pytest.fixture
async def worker(tmp_path):
    """A worker of this very process whose control socket answers with what `reply` holds."""
    asked: list[str] = []
    reply = {"stats": to_plain(COUNTERS), "status": STATUS}

    async def serve(reader, writer) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                message = await read_message(reader)
                asked.append(message["op"])
                writer.write(encode({"id": message["id"], "ok": True, **reply}))

    path = tmp_path / "w.sock"
    server = await asyncio.start_unix_server(serve, str(path))
    process = process_id(os.getpid())
    changed: list[WorkerState] = []
    local = LocalWorker(
        "chat", DeviceId("n1", "d0"), 1, process, lambda each: changed.append(each.state)
    )
    local.watch(path)
    yield local, asked, reply, changed
    await local.close()
    server.close()


async def test_one_question_tells_counters_and_state(worker) -> None:
    local, asked, _reply, changed = worker
    for _ in range(3):
        stats = await gather_stats("n1", [local], (), SystemClock())
    assert stats.workers == (COUNTERS,)
    assert (local.report.epoch, local.report.address) == (3, "127.0.0.1:5")
    assert changed == [WorkerState.SERVING]  # told when it changed, not at every look
    assert asked == ["stats"] * 3


async def test_a_worker_that_tells_no_state_with_its_counters_is_at_work_all_the_same(
    worker,
) -> None:
    local, _asked, reply, _changed = worker
    del reply["status"]
    stats = await gather_stats("n1", [local], (), SystemClock())
    assert stats.workers == (COUNTERS,)
    assert local.pulse.missed == 0
