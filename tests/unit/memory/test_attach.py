"""Can a worker load a model into pages once, and everyone after it attach without a copy?"""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest
import torch

from moectl.core.errors import CheckpointError, MappingError, PoolExhaustedError
from moectl.memory.copy import copy_pages
from moectl.memory.hmm.client import HmmClient
from moectl.memory.host import held_bytes
from moectl.memory.layout import ExpertKey, ExpertLayout, ExpertShape
from moectl.memory.loader import CheckpointReader, read_expert_into
from moectl.memory.tensors import is_inside
from moectl.memory.window import Window

from .conftest import PAGE, PAGES, RunningHmm, eventually, open_fds, shared_maps, write_checkpoint
from .rank_weights import (
    ExpertWeights,
    RankPlace,
    attach_experts,
    attach_shared,
    load_shared,
    prepare_experts,
    retire_experts,
)

T = TypeVar("T")
SEED = 20250211
KILLS = 25
HIDDEN, EXPERT_HIDDEN, LAYERS, EXPERTS = 48, 40, 2, 4
SHAPE = ExpertShape(HIDDEN, EXPERT_HIDDEN, "float32")
WANTED = [
    ("model.embed_tokens.weight", (100, HIDDEN), "float32"),
    ("model.norm.weight", (HIDDEN,), "float32"),
]

ATTACH_AND_WRITE = """
import sys
from moectl.memory.hmm.client import HmmClient
from moectl.memory.layout import SharedLayout
from moectl.memory.tensors import shared_tensors
from moectl.memory.window import Window
client = HmmClient(sys.argv[1], "child")
layout = SharedLayout.from_json(client.get_layout("shared:chat:d0"))
window = Window(client.device("d0"), layout.bytes, writable=False)
window.map(0, layout.pages)
weight = shared_tensors(window, layout)["model.norm.weight"]
print(float(weight.sum()), flush=True)
weight.fill_(0)
"""


def checkpoint(folder: Path) -> Path:
    torch.manual_seed(7)
    tensors = {name: torch.randn(*shape).bfloat16() for name, shape, _ in WANTED}
    for layer in range(LAYERS):
        for expert in range(EXPERTS):
            prefix = f"model.layers.{layer}.mlp.experts.{expert}."
            tensors[f"{prefix}gate_proj.weight"] = torch.randn(EXPERT_HIDDEN, HIDDEN).bfloat16()
            tensors[f"{prefix}up_proj.weight"] = torch.randn(EXPERT_HIDDEN, HIDDEN).bfloat16()
            tensors[f"{prefix}down_proj.weight"] = torch.randn(HIDDEN, EXPERT_HIDDEN).bfloat16()
    write_checkpoint(folder / "model.safetensors", tensors)
    return folder


def fill_from(reader: CheckpointReader) -> Callable[[ExpertKey, torch.Tensor, torch.Tensor], None]:
    return lambda key, gate_up, down: read_expert_into(reader, *key, gate_up, down)


def expert_bytes(weights: ExpertWeights, key: ExpertKey) -> bytes:
    slot = weights.layout.slots[key]
    parts = (weights.gate_up[slot], weights.down[slot])
    return b"".join(part.numpy().tobytes() for part in parts)


def used(place: RankPlace) -> dict[str, int]:
    entry = next(e for e in place.client.usage() if e["device"] == place.device)
    assert entry["reserved"] == 0
    found: dict[str, int] = entry["used"]
    return found


def test_the_first_load_reads_and_the_next_worker_attaches_without_a_copy(
    hmm: RunningHmm, tmp_path: Path
) -> None:
    place = RankPlace(hmm.client(), "chat", "d0")
    assert attach_shared(place) is None
    with CheckpointReader(checkpoint(tmp_path / "m")) as reader:
        loaded = load_shared(place, reader, WANTED)
        read_once = reader.bytes_read
        again = load_shared(RankPlace(hmm.client(), "chat", "d0"), reader, WANTED)
        assert reader.bytes_read == read_once == 2 * (100 * HIDDEN + HIDDEN)
    held = held_bytes(place.client.device("d0").fd)
    for weights in (loaded, again):
        for name, shape, _ in WANTED:
            assert weights.tensors[name].shape == shape
            assert is_inside(weights.tensors[name], weights.window)
    assert again.layout == loaded.layout
    assert torch.equal(*(w.tensors["model.embed_tokens.weight"] for w in (loaded, again)))
    assert held_bytes(place.client.device("d0").fd) == held
    assert used(place) == {"chat/shared": 2}


def test_another_process_reads_the_weights_and_dies_when_it_writes_them(
    hmm: RunningHmm, tmp_path: Path
) -> None:
    place = RankPlace(hmm.client(), "chat", "d0")
    with CheckpointReader(checkpoint(tmp_path / "m")) as reader:
        weights = load_shared(place, reader, WANTED)
    expected = float(weights.tensors["model.norm.weight"].sum())
    done = subprocess.run(
        [sys.executable, "-P", "-c", ATTACH_AND_WRITE, str(hmm.socket)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGSEGV, done.stderr
    assert float(done.stdout) == expected == float(weights.tensors["model.norm.weight"].sum())


def test_a_checkpoint_that_fails_gives_its_pages_back(hmm: RunningHmm, tmp_path: Path) -> None:
    place = RankPlace(hmm.client(), "chat", "d0")
    fds, maps = open_fds(), shared_maps()
    place.client.device("d0")
    with CheckpointReader(checkpoint(tmp_path / "m")) as reader:
        with pytest.raises(CheckpointError, match=r"tensor lm_head\.weight is missing"):
            load_shared(place, reader, [*WANTED, ("lm_head.weight", (4, 4), "float32")])
        with pytest.raises(CheckpointError, match=r"experts\.9\."):
            prepare_experts(place, None, SHAPE, [(0, 1), (0, 9)], fill_from(reader))
        with pytest.raises(PoolExhaustedError):
            everything = [(layer, 0) for layer in range(PAGES)]
            prepare_experts(place, None, SHAPE, everything, fill_from(reader))
    assert used(place) == {}
    assert place.client.layouts() == []
    place.client.check()
    assert (open_fds(), shared_maps()) == (fds + 1, maps)


def test_other_weights_under_the_same_name_are_refused(hmm: RunningHmm, tmp_path: Path) -> None:
    place = RankPlace(hmm.client(), "chat", "d0")
    with CheckpointReader(checkpoint(tmp_path / "m")) as reader:
        load_shared(place, reader, WANTED)
        with pytest.raises(MappingError, match="holds other weights of chat"):
            load_shared(place, reader, WANTED[:1])


def test_a_respread_moves_no_byte_of_kept_experts_and_retires_the_rest(
    hmm: RunningHmm, tmp_path: Path
) -> None:
    place = RankPlace(hmm.client(), "chat", "d0")
    with CheckpointReader(checkpoint(tmp_path / "m")) as reader:
        fill = fill_from(reader)
        first = [(layer, expert) for layer in range(LAYERS) for expert in (0, 1, 2)]
        old = prepare_experts(place, None, SHAPE, first, fill)
        old.commit(place, 1)
        before = {key: expert_bytes(old, key) for key in first}
        read = reader.bytes_read
        wanted = [(0, 2), (1, 0), (1, 3)]
        new = prepare_experts(place, old.layout, SHAPE, wanted, fill)
        assert reader.bytes_read - read == SHAPE.bytes // 2  # one missing expert, in bf16
        assert new.layout.pages_of(0, 2) == old.layout.pages_of(0, 2)
        assert [expert_bytes(new, key) for key in wanted[:2]] == [before[k] for k in wanted[:2]]
        assert {key: expert_bytes(old, key) for key in first} == before
        new.commit(place, 2)
        old.window.close()
        freed = retire_experts(place, old.layout, 1, new.layout)
    size = new.layout.pages_per_slot
    assert freed == 4 * size
    assert used(place) == {"chat/experts": 3 * size}
    assert place.client.layouts("experts:chat:d0:") == ["experts:chat:d0:2"]
    adopted = attach_experts(RankPlace(hmm.client(), "chat", "d0"), 2)
    assert adopted is not None and adopted.layout == new.layout
    assert expert_bytes(adopted, (1, 3)) == expert_bytes(new, (1, 3))
    assert is_inside(adopted.gate_up[2], adopted.window)
    assert attach_experts(place, 1) is None


def test_a_forfeited_preparation_leaves_the_old_epoch_as_it_was(
    hmm: RunningHmm, tmp_path: Path
) -> None:
    place = RankPlace(hmm.client(), "chat", "d0")
    with CheckpointReader(checkpoint(tmp_path / "m")) as reader:
        old = prepare_experts(place, None, SHAPE, [(0, 0), (0, 1)], fill_from(reader))
        old.commit(place, 1)
        before, pages = expert_bytes(old, (0, 1)), used(place)
        new = prepare_experts(place, old.layout, SHAPE, [(0, 1), (1, 1)], fill_from(reader))
        new.forfeit()
        new.forfeit()
    assert used(place) == pages
    assert expert_bytes(old, (0, 1)) == before


def test_an_epoch_may_leave_a_rank_without_experts(hmm: RunningHmm, tmp_path: Path) -> None:
    place = RankPlace(hmm.client(), "chat", "d0")
    with CheckpointReader(checkpoint(tmp_path / "m")) as reader:
        old = prepare_experts(place, None, SHAPE, [(0, 0)], fill_from(reader))
        old.commit(place, 1)
        new = prepare_experts(place, old.layout, SHAPE, [], fill_from(reader))
    new.commit(place, 2)
    retire_experts(place, old.layout, 1, new.layout)
    assert used(place) == {}
    adopted = attach_experts(place, 2)
    assert adopted is not None and adopted.layout == ExpertLayout(SHAPE, PAGE)


def test_an_expert_is_copied_from_the_pages_of_another_device(
    hmm: RunningHmm, tmp_path: Path
) -> None:
    client = hmm.client()
    source, target = (RankPlace(client, "chat", device) for device in ("d0", "d1"))
    with CheckpointReader(checkpoint(tmp_path / "m")) as reader:
        there = prepare_experts(source, None, SHAPE, [(0, 0), (0, 3)], fill_from(reader))
    there.commit(source, 1)
    size = there.layout.pages_per_slot
    client.reserve("d1", 3, "other/kv").commit()
    with client.reserve("d1", size, "chat/experts") as reservation:
        with Window(client.device("d1"), size * PAGE, writable=True) as window:
            window.map(0, reservation.pages)
            pages = there.layout.pages_of(0, 3)
            assert copy_pages(client.device("d0"), pages, window, 0, SHAPE.bytes) == SHAPE.bytes
        layout = ExpertLayout.build(SHAPE, PAGE, {(0, 3): reservation.pages})
        reservation.commit({"experts:chat:d1:1": layout.to_json()})
    here = attach_experts(target, 1)
    assert here is not None
    assert expert_bytes(here, (0, 3)) == expert_bytes(there, (0, 3))


def test_a_copy_needs_a_mapped_and_writable_target(hmm: RunningHmm) -> None:
    client = hmm.client()
    source, handle = client.device("d0"), client.device("d1")
    with Window(handle, 4 * PAGE, writable=True) as window:
        window.map(PAGE, [0, 1])
        for offset, pages in ((0, [1]), (2 * PAGE, [1, 2]), (4 * PAGE, [1])):
            with pytest.raises(MappingError, match="not mapped writable"):
                copy_pages(source, pages, window, offset)
        with pytest.raises(MappingError):
            copy_pages(source, [1], window, PAGE, PAGE + 1)
        assert copy_pages(source, [], window, PAGE) == 0
        assert copy_pages(source, [9, 4], window, PAGE) == 2 * PAGE
    with Window(handle, PAGE, writable=False) as window:
        window.map(0, [0])
        with pytest.raises(MappingError, match="not mapped writable"):
            copy_pages(source, [1], window, 0)


def test_cycles_of_attaching_and_respreading_leak_nothing(hmm: RunningHmm, tmp_path: Path) -> None:
    place = RankPlace(hmm.client(), "chat", "d0")
    place.client.device("d0")
    fds, maps = open_fds(), shared_maps()
    wide = [(layer, expert) for layer in range(LAYERS) for expert in range(EXPERTS)]
    with CheckpointReader(checkpoint(tmp_path / "m")) as reader:
        fill = fill_from(reader)
        load_shared(place, reader, WANTED).window.close()
        held = prepare_experts(place, None, SHAPE, wide, fill)
        held.commit(place, 0)
        sums, pages = {key: expert_bytes(held, key) for key in wide}, used(place)
        for epoch in range(1, 41):
            wanted = wide[::2] if epoch % 2 else wide
            required(attach_shared(place)).window.close()
            prepare_experts(place, held.layout, SHAPE, wanted, fill).forfeit()
            shadow = prepare_experts(place, held.layout, SHAPE, wanted, fill)
            shadow.commit(place, epoch)
            held.window.close()
            retire_experts(place, held.layout, epoch - 1, shadow.layout)
            held = shadow
    assert {key: expert_bytes(held, key) for key in wide} == sums
    assert used(place) == pages
    assert place.client.layouts("experts:") == ["experts:chat:d0:40"]
    place.client.check()
    held.window.close()
    assert (open_fds(), shared_maps()) == (fds, maps)


def test_a_worker_killed_at_any_instant_leaves_whole_epochs_that_the_next_one_adopts(
    hmm: RunningHmm,
) -> None:
    rng = random.Random(SEED)
    watcher = RankPlace(hmm.client(), "chat", "d0")
    first = prepare_experts(watcher, None, SHAPE, [(0, n) for n in range(4)], fill_with_keys)
    first.commit(watcher, 0)
    first.window.close()
    client = watcher.client
    for turn in range(KILLS):
        pid = os.fork()
        if pid == 0:
            respread_until_killed(hmm.socket)
        if not turn:  # on a busy machine the others may be killed before they did anything
            assert eventually(lambda: newest_epoch(client) > 0)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert eventually(lambda: client.usage()[0]["reserved"] == 0)
        names = client.layouts("experts:chat:d0:")
        layouts = [ExpertLayout.from_json(client.get_layout(name) or {}) for name in names]
        named = {page for layout in layouts for page in layout.pages}
        assert named == set(client.pages_of("d0", "chat/experts"))
        with_bytes = required(attach_experts(watcher, newest_epoch(client)))
        for (layer, expert), slot in with_bytes.layout.slots.items():
            assert bool((with_bytes.gate_up[slot] == layer * 100 + expert).all())
            assert bool((with_bytes.down[slot] == layer * 100 + expert).all())
        with_bytes.window.close()
        client.check()
    assert newest_epoch(watcher.client) > 0


def fill_with_keys(key: ExpertKey, gate_up: torch.Tensor, down: torch.Tensor) -> None:
    for tensor in (gate_up, down):
        tensor.fill_(key[0] * 100 + key[1])


def newest_epoch(client: HmmClient) -> int:
    return max(int(name.rpartition(":")[2]) for name in client.layouts("experts:chat:d0:"))


def respread_until_killed(socket_path: Path) -> NoReturn:
    """A worker: adopt the newest epoch, retire what a predecessor left, go on respreading."""
    try:
        place = RankPlace(HmmClient(socket_path, "worker"), "chat", "d0")
        epoch = newest_epoch(place.client)
        held = required(attach_experts(place, epoch))
        for name in place.client.layouts("experts:chat:d0:"):
            older = int(name.rpartition(":")[2])
            if older != epoch:
                plain = place.client.get_layout(name) or {}
                retire_experts(place, ExpertLayout.from_json(plain), older, held.layout)
        for number in itertools.count(epoch + 1):
            wanted = [(layer, (number + layer) % 5) for layer in range(number % 3, 6)]
            shadow = prepare_experts(place, held.layout, SHAPE, wanted, fill_with_keys)
            shadow.commit(place, number)
            held.window.close()
            retire_experts(place, held.layout, number - 1, shadow.layout)
            held = shadow
    finally:
        os._exit(1)


def required(weights: T | None) -> T:
    assert weights is not None
    return weights
