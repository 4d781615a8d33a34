"""Real workers go from epoch to epoch while they serve: any width, two nodes, and a kill -9.

Two HMMs stand for two nodes, one fork server makes all workers, and the test is both agent and
gateway: it speaks the control and the data protocol itself. No etcd, no controller.
"""

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from moectl.agents.engine.local import open_engine, open_forward
from moectl.agents.engine.release import release_device
from moectl.agents.engine.request import Request
from moectl.agents.engine.schedule import Limits
from moectl.agents.launch.client import argv as fork_argv
from moectl.agents.launch.orders import WorkerLaunch
from moectl.core.plan import (
    DeviceId,
    Part,
    Phase,
    Placement,
    Prediction,
    Step,
    StepKind,
    TransitionKind,
    joining_ranks,
    leaving_devices,
)
from moectl.core.records import TransitionRecord, to_plain
from moectl.memory.hmm import wire
from moectl.memory.hmm.client import HmmClient

LAYERS, EXPERTS = 2, 10
EXPERT_BYTES = 3 * 32 * 64 * 4
PAGES_PER_EXPERT = 2
DEADLINE_S = 60.0
ENGINE = {
    "maxBatchTokens": 32,
    "maxRequests": 16,
    "prefillChunk": 16,
    "kvBlockTokens": 8,
    "maxContext": 256,
}
SPEC = {"engine": ENGINE, "memory": {"kvPerDevice": 512 * 1024}}
DEVICES = tuple(DeviceId(node, device) for node in ("n1", "n2") for device in ("d0", "d1"))
ADDRESS = {"n1": "127.0.0.11", "n2": "127.0.0.12"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(7)
    config = Qwen3MoeConfig(
        vocab_size=160, hidden_size=64, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_experts=EXPERTS, num_experts_per_tok=3,
        moe_intermediate_size=32, intermediate_size=32, max_position_embeddings=256,
        tie_word_embeddings=True, decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    model = Qwen3MoeForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(checkpoint):
    """What one rank with every expert says: the run that never scaled."""
    torch.set_num_threads(1)
    forward, moe = open_forward(checkpoint)
    known = {}

    def tokens(prompt, count):
        if (prompt, count) not in known:
            engine = open_engine(forward, Limits(max_context=256), 64)
            engine.submit(Request("a", prompt, count))
            out = []
            while engine.has_work:
                out += [token.token for token in engine.run(engine.plan(), moe).tokens]
            known[prompt, count] = out
        return known[prompt, count]

    return tokens


def started(command, ready_fd):
    read_fd, write_fd = os.pipe()
    process = subprocess.Popen(
        [part.replace("READY", str(write_fd)) for part in command], pass_fds=[write_fd]
    )
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        assert pipe.read(5) == b"ready", command
    return process


class Frames:
    """A socket that speaks frames, with a thread that reads them."""

    def __init__(self, sock, on_message):
        self._sock, self._on_message = sock, on_message
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def send(self, message):
        body = json.dumps(message).encode()
        self._sock.sendall(len(body).to_bytes(4, "big") + body)

    def _read(self):
        with contextlib.suppress(OSError), self._sock.makefile("rb") as stream:
            while head := stream.read(4):
                self._on_message(json.loads(stream.read(int.from_bytes(head, "big"))))
        self._on_message(None)

    def close(self):
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._sock.close()


class Handle:
    """The test's end of one worker: control as its agent, data as a gateway."""

    def __init__(self, fleet, device, pid, control_path):
        self.fleet, self.device, self.pid = fleet, device, pid
        self._replies, self._events, self._number = queue.Queue(), queue.Queue(), 0
        sock = socket.socket(socket.AF_UNIX)
        until = time.monotonic() + DEADLINE_S
        while True:
            try:
                sock.connect(str(control_path))
                break
            except OSError:
                assert time.monotonic() < until, f"the worker on {device} does not listen"
                time.sleep(0.02)
        self._control = Frames(sock, self._on_control)
        self.address = self.call("status")["data_address"]
        host, port = self.address.split(":")
        self._data = Frames(socket.create_connection((host, int(port))), self._on_data)
        self._data.send({"hello": 1, "secret": "s3cret"})

    def call(self, op, **fields):
        self._number += 1
        self._control.send({"id": self._number, "op": op, **fields})
        reply = self._replies.get(timeout=DEADLINE_S)
        assert reply.get("ok"), reply
        return reply

    def event(self, name):
        """The next event of that name; others in between are passed over."""
        until = time.monotonic() + DEADLINE_S
        while True:
            event = self._events.get(timeout=max(until - time.monotonic(), 0.01))
            if event["event"] == name:
                return event

    def submit(self, stream):
        self._data.send({
            "op": "submit", "id": stream.name, "prompt": list(stream.prompt),
            "already": list(stream.tokens), "max_tokens": stream.count, "eos": [],
            "sampling": {"temperature": 0.0},
        })  # fmt: skip

    def close(self):
        self._control.close()
        self._data.close()

    def _on_control(self, message):
        if message is not None:
            (self._events if "event" in message else self._replies).put(message)

    def _on_data(self, message):
        if message is None or "ok" in message:
            if message is None:
                self.fleet.lost(self.device)
            return
        for name, index, token in message["tokens"]:
            self.fleet.streams[name].token(index, token)
        for name, reason in message["done"]:
            self.fleet.streams[name].done(reason)


class Stream:
    """One request, as a gateway keeps it: replayed elsewhere when its rank leaves or dies."""

    def __init__(self, fleet, name, prompt, count, device):
        self.fleet, self.name, self.prompt, self.count = fleet, name, prompt, count
        self.tokens, self.reason, self.device, self.replays = [], None, device, 0
        self.ended = threading.Event()
        self.moved_off = threading.Event()

    def token(self, index, token):
        assert index == len(self.tokens), f"{self.name}: token {index} after {len(self.tokens)}"
        self.tokens.append(token)

    def done(self, reason):
        if reason in ("moved", "lost"):
            self.moved_off.set()
            self.fleet.homeless.put(self)
            return
        self.reason = reason
        self.ended.set()
        self.fleet.talk_on(self)


class Site:
    """Two nodes of two devices, a fork server and a store; they outlive the tests' fleets."""

    def __init__(self, root):
        self.root, self._processes = root, []
        (root / "secret").write_text("s3cret")
        for node in ADDRESS:
            devices = [{"id": d, "hbm_bytes": 4 << 20, "page_bytes": 16384} for d in ("d0", "d1")]
            (root / node).mkdir(mode=0o700)
            self._processes.append(started([
                sys.executable, "-P", "-m", "moectl.memory.hmm.server", "--socket",
                str(root / node / "hmm.sock"), "--node", node, "--devices", json.dumps(devices),
                "--ready-fd", "READY",
            ], "READY"))  # fmt: skip
        command = [
            "READY" if part == "0" else part for part in fork_argv(root / "n1" / "fork.sock", 0)
        ]
        self._processes.append(started(command, "READY"))
        self._fork = socket.socket(socket.AF_UNIX)
        self._fork.connect(str(root / "n1" / "fork.sock"))
        self.store = self.fork("spawn_store", host="127.0.0.11")

    def fork(self, op, **fields):
        self._fork.sendall(wire.pack({"op": op, **fields}))
        head = self._fork.recv(4, socket.MSG_WAITALL)
        body = self._fork.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
        reply = wire.unpack(body)
        assert reply["ok"], reply
        return reply

    def hmm(self, node):
        return HmmClient(self.root / node / "hmm.sock", "test")

    def close(self):
        os.kill(self.store["pid"], signal.SIGTERM)
        for process in self._processes:
            process.terminate()
            assert process.wait(20) in (0, -signal.SIGTERM)


class Fleet:
    """Workers of one model on a site, and the transitions between its placements."""

    operations = 0

    def __init__(self, site, checkpoint):
        self.site, self.checkpoint, self.hmm = site, checkpoint, site.hmm
        self.workers, self.streams, self.homeless = {}, {}, queue.Queue()
        self.placement, self.is_talking, self._lock = None, False, threading.Lock()

    def spawn(self, device, instance):
        root = self.site.root
        control = root / device.node / f"{device.device}.sock"
        launch = WorkerLaunch(
            model="tiny", node=device.node, device=device.device, instance=instance,
            node_address=ADDRESS[device.node], hmm_socket=str(root / device.node / "hmm.sock"),
            control_socket=str(control), data_host=ADDRESS[device.node],
            secret_file=str(root / "secret"), model_folder=str(self.checkpoint),
            model_spec=SPEC, log_path=str(root / f"{device.node}-{device.device}.log"),
        )  # fmt: skip
        control.unlink(missing_ok=True)
        pid = self.site.fork("spawn", config=launch.to_plain())["pid"]
        self.workers[device] = Handle(self, device, pid, control)

    def record(self, kind, new, steps):
        Fleet.operations += 1
        now = time.time()
        return TransitionRecord(
            operation_id=f"op{Fleet.operations}", model="tiny", kind=kind, phase=Phase.PREPARE,
            generation=1, old=self.placement, new=new, steps=steps,
            prediction=Prediction(0, 0, 0, {}, 0.0, 0.0, 0), accepted_at=now, phase_at={},
            deadline_at=now + DEADLINE_S, store_address=f"127.0.0.11:{self.site.store['port']}",
            model_spec=SPEC,
        )  # fmt: skip

    def change(self, kind, new, steps):
        """Prepare, commit; returns the record and the figures. Retiring is the caller's."""
        record = self.record(kind, new, steps)
        members = self.prepare(record)
        figures = {device: self.workers[device].event("prepared") for device in members}
        assert all(each["ok"] for each in figures.values()), figures
        self.commit(record, members)
        return record, {device: each["figures"] for device, each in figures.items()}

    def prepare(self, record):
        for rank in joining_ranks(record.old, record.new):
            if (old := self.workers.pop(record.new.ranks[rank], None)) is not None:
                old.close()
            self.spawn(record.new.ranks[rank], record.new.instances[rank])
        leaving = leaving_devices(record.old, record.new)
        members = [*record.new.ranks, *(d for d in leaving if d in self.workers)]
        for device in members:
            self.workers[device].call("prepare", transition=to_plain(record))
        return members

    def commit(self, record, members):
        for device in members:
            self.workers[device].call("commit", operation_id=record.operation_id)
        for device in members:
            assert self.workers[device].event("committed")["ok"]
        self.placement = record.new
        self.place_homeless()

    def retire(self, record):
        freed = {}
        for device in [*record.new.ranks, *leaving_devices(record.old, record.new)]:
            if device in self.workers:
                self.workers[device].call("retire", operation_id=record.operation_id)
                event = self.workers[device].event("retired")
                assert event["ok"], event
                freed[device] = event["figures"]["pages_freed"]
        for device in leaving_devices(record.old, record.new):
            self.end(device)
        return freed

    def end(self, device):
        worker = self.workers.pop(device, None)
        if worker is not None:
            worker.call("stop")
            wait_gone(worker.pid)
            worker.close()

    def start_stream(self, prompt, count, device):
        with self._lock:
            stream = Stream(self, f"r{len(self.streams)}", prompt, count, device)
            self.streams[stream.name] = stream
        self.workers[device].submit(stream)
        return stream

    def talk_on(self, stream):
        """A conversation that ended begins anew, as long as there is to be load."""
        if self.is_talking:
            self.start_stream(stream.prompt, stream.count, stream.device)

    def place_homeless(self):
        """Replay requests that lost their rank on the first rank."""
        while True:
            try:
                stream = self.homeless.get_nowait()
            except queue.Empty:
                return
            stream.device, stream.replays = self.placement.ranks[0], stream.replays + 1
            self.workers[stream.device].submit(stream)

    def lost(self, device):
        for stream in self.streams.values():
            if stream.device == device and not stream.ended.is_set():
                stream.done("lost")

    def close(self):
        """End every worker and give every page back."""
        self.is_talking = False
        for device in list(self.workers):
            with contextlib.suppress(AssertionError, OSError, queue.Empty):
                self.end(device)
        for device in DEVICES:
            with self.hmm(device.node) as hmm:
                release_device(hmm, "tiny", device.device)


def wait_gone(pid):
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            import select

            poller = select.poll()
            poller.register(handle, select.POLLIN)
            assert poller.poll(DEADLINE_S * 1000), f"process {pid} does not end"
        finally:
            os.close(handle)


def spread(old, ranks, epoch, instances=None):
    """A placement with counts that differ by at most one per layer and few moves, and its steps."""
    owners, steps = [], []
    kept = {device: rank for rank, device in enumerate(ranks)}
    for layer in range(LAYERS):
        size = -(-EXPERTS // len(ranks))
        count, mine, homeless = [0] * len(ranks), {}, []
        for expert in range(EXPERTS):
            holder = old.ranks[old.owners[layer][expert][0]] if old else None
            rank = kept.get(holder)
            if rank is not None and count[rank] < size:
                mine[expert], count[rank] = rank, count[rank] + 1
            else:
                homeless.append((expert, holder))
        for expert, holder in homeless:
            rank = count.index(min(count))
            mine[expert], count[rank] = rank, count[rank] + 1
            kind = StepKind.COPY if holder is not None else StepKind.LOAD
            steps.append(Step(kind, Part.EXPERT, ranks[rank], 1, layer, expert, holder))
        owners.append(tuple((mine[expert],) for expert in range(EXPERTS)))
    new = Placement("tiny", epoch, ranks, tuple(owners), instances or (1,) * len(ranks))
    for rank in joining_ranks(old, new):
        near = [d for d in old.ranks if d.node == ranks[rank].node] if old else []
        source = (near or list(old.ranks))[0] if old else None
        kind = StepKind.COPY if source else StepKind.LOAD
        steps.append(Step(kind, Part.SHARED, ranks[rank], 1, source=source))
    return new, tuple(steps)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    running = Site(tmp_path_factory.mktemp("site"))
    yield running
    running.close()
    for log in sorted(running.root.glob("*.log")):
        print(f"--- {log.name}\n{log.read_text()}", file=sys.stderr)


@pytest.fixture
def fleet(site, checkpoint):
    running = Fleet(site, checkpoint)
    yield running
    running.close()


def create(fleet, width):
    new, steps = spread(None, DEVICES[:width], 1)
    record, _ = fleet.change(TransitionKind.CREATE, new, steps)
    fleet.retire(record)


def prompt(seed, length):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(1, 160, (length,), generator=generator).tolist())


def finish(fleet, streams, expected):
    until = time.monotonic() + DEADLINE_S
    for stream in streams:
        while not stream.ended.wait(0.05):
            assert time.monotonic() < until, f"{stream.name} got {len(stream.tokens)} tokens"
            fleet.place_homeless()
        assert stream.reason == "length"
        assert stream.tokens == expected(stream.prompt, stream.count)


def expert_pages(fleet):
    """device -> pages that hold experts."""
    held = {}
    for node in ADDRESS:
        with fleet.hmm(node) as hmm:
            hmm.check()
            for usage in hmm.usage():
                held[DeviceId(node, usage["device"])] = usage["used"].get("tiny/experts", 0)
                assert usage["reserved"] == 0
    return held


def test_streams_keep_their_tokens_through_widths_2_4_3_2(fleet, expected):
    create(fleet, 2)
    fleet.is_talking = True
    for n in range(4):
        fleet.start_stream(prompt(n, 5 + 9 * n), 90, DEVICES[n % 2])
    for epoch, width in ((2, 4), (3, 3), (4, 2)):
        new, steps = spread(fleet.placement, DEVICES[:width], epoch)
        record, figures = fleet.change(TransitionKind.SCALE, new, steps)
        fleet.retire(record)
        moved = sum(int(each["bytes_copied"]) for each in figures.values())
        assert moved == sum(step.part is Part.EXPERT for step in steps) * EXPERT_BYTES
        held = expert_pages(fleet)
        for device in DEVICES:
            rank = new.rank_of(device)
            count = len(list(new.experts_on(rank))) if rank is not None else 0
            assert held[device] == count * PAGES_PER_EXPERT
        for device in new.ranks:
            status = fleet.workers[device].call("status")
            assert (status["state"], status["epoch"]) == ("serving", epoch)
        if width > 2:
            fleet.start_stream(prompt(10 + width, 12), 60, new.ranks[-1])
    fleet.is_talking = False
    finish(fleet, list(fleet.streams.values()), expected)
    # Only requests of ranks that left were replayed.
    assert {s.prompt for s in fleet.streams.values() if s.replays} <= {
        prompt(14, 12),
        prompt(13, 12),
    }


def test_a_killed_worker_is_healed_from_the_pages_it_left(fleet, expected):
    create(fleet, 3)
    streams = [fleet.start_stream(prompt(20 + n, 30), 100, DEVICES[n]) for n in range(3)]
    while not all(stream.tokens for stream in streams):
        time.sleep(0.01)
    before = expert_pages(fleet)
    os.kill(fleet.workers[DEVICES[1]].pid, signal.SIGKILL)
    for device in (DEVICES[0], DEVICES[2]):
        fleet.workers[device].call("peer_lost", epoch=1)
        assert fleet.workers[device].event("broken")["epoch"] == 1
    old = fleet.placement
    healed = Placement("tiny", 2, old.ranks, old.owners, (1, 2, 1))
    record, figures = fleet.change(TransitionKind.HEAL, healed, ())
    assert all(each["bytes_copied"] == 0 for each in figures.values())
    assert figures[DEVICES[1]]["shared_bytes"] == 0
    fleet.retire(record)
    finish(fleet, streams, expected)
    assert [stream.replays for stream in streams] == [0, 1, 0]
    assert expert_pages(fleet) == before


def test_a_forfeit_gives_everything_back_and_the_old_epoch_serves_on(fleet, expected):
    create(fleet, 2)
    before = expert_pages(fleet)
    streams = [fleet.start_stream(prompt(40 + n, 8), 80, DEVICES[n]) for n in range(2)]
    new, steps = spread(fleet.placement, DEVICES[:4], 2)
    record = fleet.record(TransitionKind.SCALE, new, steps)
    members = fleet.prepare(record)
    for device in members:
        assert fleet.workers[device].event("prepared")["ok"]
    for device in members:
        fleet.workers[device].call("forfeit", operation_id=record.operation_id)
    for device in members:
        assert fleet.workers[device].event("forfeited")["ok"]
    for device in DEVICES[2:]:
        fleet.end(device)
    assert expert_pages(fleet) == before
    for node in ADDRESS:
        with fleet.hmm(node) as hmm:
            assert hmm.call({"op": "usage"})["channels"] == []
            assert [name for name in hmm.layouts("experts:") if not name.endswith(":1")] == []
    finish(fleet, streams, expected)
    # The next one goes through.
    new, steps = spread(fleet.placement, DEVICES[:3], 3)
    fleet.retire(fleet.change(TransitionKind.SCALE, new, steps)[0])
    finish(fleet, [fleet.start_stream(prompt(50, 20), 20, DEVICES[2])], expected)


def test_a_forfeit_ends_a_preparation_whose_peers_never_come(fleet, expected):
    create(fleet, 1)
    new, steps = spread(fleet.placement, (DEVICES[0], DEVICES[2]), 2)
    record = fleet.record(TransitionKind.SCALE, new, steps)
    fleet.workers[DEVICES[0]].call("prepare", transition=to_plain(record))
    stream = fleet.start_stream(prompt(60, 8), 30, DEVICES[0])
    finish(fleet, [stream], expected)  # waiting for a peer disturbs nobody
    fleet.workers[DEVICES[0]].call("forfeit", operation_id=record.operation_id)
    assert fleet.workers[DEVICES[0]].event("forfeited")["ok"]
    assert fleet.workers[DEVICES[0]].call("status")["prepared_operation"] == ""


def test_a_stopped_worker_tells_its_requests_to_move_and_its_device_can_be_released(fleet):
    create(fleet, 1)
    stream = fleet.start_stream(prompt(70, 8), 200, DEVICES[0])
    while not stream.tokens:
        time.sleep(0.01)
    os.kill(fleet.workers[DEVICES[0]].pid, signal.SIGTERM)
    assert stream.moved_off.wait(DEADLINE_S)
    wait_gone(fleet.workers.pop(DEVICES[0]).pid)
    with fleet.hmm("n1") as hmm:
        assert release_device(hmm, "tiny", "d0") > 0
        assert hmm.usage()[0]["used"] == {}
        assert hmm.layouts() == []
