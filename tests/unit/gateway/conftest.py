"""A small real tokenizer folder and a gateway on a real port with scripted workers behind it."""

import asyncio
import contextlib
import hashlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import tokenizers
import uvicorn
from tokenizers import decoders, models, pre_tokenizers, trainers

from moectl.agents.gateway.app import build_app
from moectl.agents.gateway.config import GatewayConfig
from moectl.agents.gateway.scripted import Script, ScriptedWorker, formula
from moectl.core.clock import SystemClock
from moectl.core.plan import DeviceId
from moectl.core.records import Keys, SpecRecord, TokenRecord, WorkerRecord, to_json
from moectl.core.store.memory import MemoryStore
from moectl.core.transitions import WorkerState

SECRET = "5ec2e7"
TOKEN = "tok-test"
TEXT = ["def f(x):\n    return x + 1\n", "class A:\n    '''naïve café ☕ 🎉 字'''\n"] * 20


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer with a chat template; no weights: the gateway needs none."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "eos_token_id": 0,
        "max_position_embeddings": 512,
        "vocab_size": tokenizer.get_vocab_size(),
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    template = (
        "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}"
        "{% endif %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    return folder


class Rig:
    """A gateway under test: its URL, its store, and the workers that were started."""

    def __init__(self, store: MemoryStore, keys: Keys, url: str, app: object) -> None:
        self.store = store
        self.keys = keys
        self.url = url
        self.app = app
        self.workers: dict[str, ScriptedWorker] = {}

    async def start_worker(self, device: str, **behaviour: object) -> ScriptedWorker:
        """A serving worker, listed in the store."""
        worker = ScriptedWorker(Script(formula(390), **behaviour), SECRET)
        await worker.start()
        self.workers[device] = worker
        await self.list_worker(device)
        return worker

    async def list_worker(self, device: str, state: WorkerState = WorkerState.SERVING) -> None:
        """Write the worker's record."""
        where = DeviceId.parse(device)
        record = WorkerRecord("chat", 0, where, 0, 1, state, self.workers[device].address, 1)
        await self.store.put(self.keys.worker("chat", where), to_json(record))

    async def until(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Wait for something to become true."""
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110  (what is waited for has no event)
                await asyncio.sleep(0.005)

    async def until_serving(self, count: int) -> None:
        """Wait until the gateway could route to so many workers."""
        directory = self.app.state.gateway.directory
        await self.until(lambda: directory.serving_count("chat") == count)


@contextlib.contextmanager
def _listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        yield bound


@contextlib.asynccontextmanager
async def running_rig(
    folder: Path, tmp_path: Path, replay_deadline: str = "5s", **limits: object
) -> AsyncIterator[Rig]:
    """A gateway on a free port, with model "chat" declared and no worker."""
    store = MemoryStore(SystemClock())
    keys = Keys("test")
    spec = {
        "source": {"path": str(folder)},
        "parallelism": {"experts": 2},
        "replayDeadline": replay_deadline,
    }
    record = SpecRecord("Model", "chat", 1, spec, "op", 1_700_000_000.0, "test")
    await store.put(keys.spec("Model", "chat"), to_json(record))
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    await store.put(keys.token(digest), to_json(TokenRecord("t", "viewer", "default", 0.0)))
    secret_file = tmp_path / "internal.key"
    secret_file.write_text(SECRET)
    config = GatewayConfig(
        cluster="test", etcd=("unused:1",), secret_file=str(secret_file), **limits
    )
    with _listener() as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        app = build_app(config, store, url)
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1, lifespan="on")
        )
        server.install_signal_handlers = lambda: None  # type: ignore[method-assign]
        task = asyncio.create_task(server.serve(sockets=[listener]))
        rig = Rig(store, keys, url, app)
        await rig.until(lambda: server.started and app.state.gateway.directory.is_ready)
        try:
            yield rig
        finally:
            for worker in rig.workers.values():
                await worker.break_off()
            server.should_exit = True
            await task
            await store.close()


@pytest.fixture
async def rig(model_folder: Path, tmp_path: Path) -> AsyncIterator[Rig]:
    """The default gateway."""
    async with running_rig(model_folder, tmp_path) as running:
        yield running


@pytest.fixture
def make_rig(
    model_folder: Path, tmp_path: Path
) -> Callable[..., contextlib.AbstractAsyncContextManager[Rig]]:
    """A gateway with other limits: `async with make_rig(inflight_max=1) as rig`."""

    def make(**limits: object) -> contextlib.AbstractAsyncContextManager[Rig]:
        return running_rig(model_folder, tmp_path, **limits)

    return make


@pytest.fixture(scope="session")
def token() -> str:
    """The bearer token that the gateway knows."""
    return TOKEN


@pytest.fixture(scope="session")
def rig_maker() -> Callable[..., contextlib.AbstractAsyncContextManager[Rig]]:
    """`running_rig` itself, for a rig in another thread's event loop."""
    return running_rig
