"""Makes the parts that several contracts share importable by the tests beside them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import pytest_asyncio
from store_backends import Backend, EtcdServer

from moectl.core.clock import SystemClock
from moectl.core.store.etcd import EtcdStore
from moectl.core.store.memory import MemoryStore
from moectl.core.store.protocol import (
    Store,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    running = EtcdServer(tmp_path_factory.mktemp("etcd"))
    try:
        with ThreadPoolExecutor(1) as other_thread:  # a loop may run in this one already
            other_thread.submit(asyncio.run, running.etcd.wait_healthy()).result()
        yield running
    finally:
        running.kill()


@pytest_asyncio.fixture(params=["memory", "etcd"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    if request.param == "memory":
        made = Backend(MemoryStore(SystemClock()), None)
    else:
        server = request.getfixturevalue("server")
        made = Backend(EtcdStore([server.etcd.endpoint]), server)
    yield made
    await made.store.close()


@pytest.fixture
def store(backend: Backend) -> Store:
    return backend.store


@pytest.fixture
def root() -> str:
    """A prefix that no other test uses."""
    return f"/test/{uuid.uuid4().hex}/"
