"""Real workers driven by a test, which is both their agent and their gateway."""

import contextlib
import queue
import threading
import time

import torch
from worker_site import ADDRESS, DEADLINE_S, DEVICES, Handle, wait_gone

from moectl.agents.engine.release import release_device
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
from moectl.core.records import TransitionRecord, to_json, to_plain

LAYERS, EXPERTS = 2, 10
EXPERT_BYTES = 3 * 32 * 64 * 4
PAGES_PER_EXPERT = 2
ENGINE = {
    "maxBatchTokens": 32,
    "maxRequests": 16,
    "prefillChunk": 16,
    "kvBlockTokens": 8,
    "maxContext": 1024,
}
SPEC = {"engine": ENGINE, "memory": {"kvPerDevice": 512 * 1024}}


class Stream:
    """One request, as a gateway keeps it: replayed elsewhere when its rank leaves or dies."""

    def __init__(self, fleet, name, prompt, count, device, sampling):
        self.fleet, self.name, self.prompt, self.count = fleet, name, prompt, count
        self.sampling = sampling
        self.tokens, self.reason, self.device, self.replays = [], None, device, 0
        self.moves, self.continued, self.moved_to = 0, 0, None
        self.ended = threading.Event()
        self.moved_off = threading.Event()

    def token(self, index, token):
        assert index == len(self.tokens), f"{self.name}: token {index} after {len(self.tokens)}"
        self.tokens.append(token)

    def done(self, reason):
        if reason == "lost" or reason.partition(":")[0] == "moved":
            where = reason.partition(":")[2].split(" ", 1)
            self.moved_to = where if len(where) == 2 else None
            self.device = None  # the end of that connection is no second loss
            self.moved_off.set()
            self.fleet.homeless.put(self)
            return
        self.reason = reason
        self.ended.set()
        self.fleet.talk_on(self)


class Fleet:
    """Workers of one model on a site, and the transitions between its placements."""

    operations = 0

    def __init__(self, site, checkpoint, **changes):
        self.site, self.checkpoint, self.hmm = site, checkpoint, site.hmm
        self.spec = SPEC | changes
        self.workers, self.streams, self.homeless = {}, {}, queue.Queue()
        self.flips = {}  # device -> figures of its last flip
        self.placement, self.is_talking, self._lock = None, False, threading.Lock()

    def spawn(self, device, instance, record=None):
        root = self.site.root
        control = root / device.node / f"{device.device}.sock"
        launch = WorkerLaunch(
            model="tiny", node=device.node, device=device.device, instance=instance,
            node_address=ADDRESS[device.node], hmm_socket=str(root / device.node / "hmm.sock"),
            control_socket=str(control), data_host=ADDRESS[device.node],
            secret_file=str(root / "secret"), model_folder=str(self.checkpoint),
            model_spec=self.spec, log_path=str(root / f"{device.node}-{device.device}.log"),
            transition=to_json(record) if record is not None else "",
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
            model_spec=self.spec,
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
            event = self.workers[device].event("committed")
            assert event["ok"], event
            self.flips[device] = event["figures"]
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

    def start_stream(self, prompt, count, device, sampling=None):
        with self._lock:
            name = f"r{len(self.streams)}"
            stream = Stream(self, name, prompt, count, device, sampling or {"temperature": 0.0})
            self.streams[stream.name] = stream
        self.workers[device].submit(stream)
        return stream

    def talk_on(self, stream):
        """A conversation that ended begins anew, as long as there is to be load."""
        if self.is_talking:
            self.start_stream(stream.prompt, stream.count, stream.device, stream.sampling)

    def place_homeless(self):
        """Claim requests that moved where they are, and replay the others on the first rank."""
        while True:
            try:
                stream = self.homeless.get_nowait()
            except queue.Empty:
                return
            there = [w for w in self.workers.values() if w.address == (stream.moved_to or [""])[0]]
            if there:
                stream.device, stream.moves = there[0].device, stream.moves + 1
                there[0].submit(stream, moved=stream.moved_to[1])
                continue
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
        assert stream.tokens == expected(stream.prompt, stream.count, stream.sampling)


def with_copies(old, base, epoch, every):
    """`base` with one more copy of each `every`-th expert on the next rank, and the steps there.

    Further copies are COPY steps from the first holder of the old placement, or LOAD without one.
    """
    ranks, owners, steps = base.ranks, [], []
    for layer, experts in enumerate(base.owners):
        row = []
        for expert, (owner,) in enumerate(experts):
            extra = ((owner + 1) % len(ranks),) if expert % every == 0 else ()
            row.append(tuple(sorted({owner, *extra})))
            for rank in row[-1]:
                before = [old.ranks[r] for r in old.owners[layer][expert]] if old else []
                if ranks[rank] not in before:
                    source = before[0] if before else None
                    kind = StepKind.COPY if before else StepKind.LOAD
                    steps.append(Step(kind, Part.EXPERT, ranks[rank], 1, layer, expert, source))
        owners.append(tuple(row))
    new = Placement("tiny", epoch, ranks, tuple(owners), base.instances)
    return new, tuple(steps)


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
