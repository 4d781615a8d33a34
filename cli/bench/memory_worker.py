"""What does one process of the attach bench do? Load a model, attach to it, or load it with Hugging
Face's own loader; one JSON line on stdout.

    python -m moectl.cli.bench.memory_worker MODE FOLDER SOCKET

`attach` is a fork of a process that holds the template and has run no thread, like a worker of the
fork server. It times from the first byte to the HMM until every weight of the model is bound.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ...agents.engine.template import bind_shared, build_template, shared_tensor_specs
from ...memory.bulk import Load, LoadOptions, load_all
from ...memory.hmm.client import HmmClient
from ...memory.layout import ExpertLayout, ExpertShape, SharedLayout, experts_name, shared_name
from ...memory.tensors import expert_tensors, is_inside, shared_tensors
from ...memory.window import Window
from .memory_hmm import private_bytes
from .memory_model import MODEL

ATTACHES = 15
READERS = 2
DTYPE = "bfloat16"
SHAPE = ExpertShape(MODEL.hidden, MODEL.expert_hidden, DTYPE)
KEYS = [(layer, expert) for layer in range(MODEL.layers) for expert in range(MODEL.experts)]
SHARED, EXPERTS = shared_name("m", "d0"), experts_name("m", "d0", 1)


def load(folder: Path, socket: Path) -> dict[str, float]:
    """Load twice into the same pages: cold (nobody has touched them) and warm; keep the second."""
    template = build_template(folder, torch.bfloat16)
    shared = SharedLayout.pack(
        (name, dims, DTYPE) for name, dims in shared_tensor_specs(template).items()
    )
    figures: dict[str, float] = {}
    with HmmClient(socket, "loader", 60.0) as client:
        for kind in ("cold", "warm"):
            began_s = time.perf_counter()
            pages, read = _load_once(client, folder, shared)
            figures[f"load_{kind}_s"] = time.perf_counter() - began_s
            figures["bytes_read"] = read
            if kind == "cold":
                for owner, held in pages.items():
                    client.free("d0", held, owner, drop_layouts=[SHARED, EXPERTS])
    return figures


def _load_once(
    client: HmmClient, folder: Path, shared: SharedLayout
) -> tuple[dict[str, tuple[int, ...]], int]:
    handle = client.device("d0")
    empty = ExpertLayout(SHAPE, handle.page_bytes)
    size = empty.pages_per_slot
    first = client.reserve("d0", shared.page_count(handle.page_bytes), "m/shared")
    second = client.reserve("d0", size * len(KEYS), "m/experts")
    shared = shared.with_pages(first.pages)
    experts = ExpertLayout.build(
        SHAPE,
        handle.page_bytes,
        {key: second.pages[at * size : (at + 1) * size] for at, key in enumerate(KEYS)},
    )
    with (
        Window(handle, len(first.pages) * handle.page_bytes, writable=True) as near,
        Window(handle, experts.bytes, writable=True) as far,
    ):
        near.map(0, first.pages)
        far.map(0, second.pages)
        loads = [Load(name, (out,)) for name, out in shared_tensors(near, shared).items()]
        gate_up, down = expert_tensors(far, experts)
        half = SHAPE.expert_hidden
        for (layer, expert), slot in experts.slots.items():
            base = f"model.layers.{layer}.mlp.experts.{expert}."
            loads.append(Load(f"{base}gate_proj.weight", (gate_up[slot][:half],)))
            loads.append(Load(f"{base}up_proj.weight", (gate_up[slot][half:],)))
            loads.append(Load(f"{base}down_proj.weight", (down[slot],)))
        loaded = load_all(folder, loads, LoadOptions(readers=READERS))
    first.commit({SHARED: shared.to_json()})
    second.commit({EXPERTS: experts.to_json()})
    return {"m/shared": first.pages, "m/experts": second.pages}, loaded.bytes_read


def attach(folder: Path, socket: Path) -> dict[str, float]:
    """Fork again and again; each child attaches once. Times are medians, counts the worst."""
    torch.set_num_threads(1)
    template = build_template(folder, torch.bfloat16)
    told = [_in_a_fork(template, socket) for _ in range(ATTACHES)]
    figures = {key: statistics.median(each[key] for each in told) for key in told[0]}
    figures |= {key: max(each[key] for each in told) for key in ("bytes_copied", "outside")}
    figures["attach_max_s"] = max(each["attach_s"] for each in told)
    return figures | {"attaches": len(told)}


def _in_a_fork(template: Any, socket: Path) -> dict[str, float]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        code = 1
        try:
            os.write(writing, json.dumps(_attach_once(template, socket)).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading, "rb") as stream:
        text = stream.read()
    os.waitpid(pid, 0)
    told: dict[str, float] = json.loads(text)
    return told


def _attach_once(template: Any, socket: Path) -> dict[str, float]:
    private = private_bytes()
    began_s = time.perf_counter()
    client = HmmClient(socket, "worker", 60.0)
    handle = client.device("d0")
    shared = SharedLayout.from_json(client.get_layout(SHARED) or {})
    experts = ExpertLayout.from_json(client.get_layout(EXPERTS) or {})
    near = Window(handle, len(shared.pages) * handle.page_bytes, writable=False)
    near.map(0, shared.pages)
    far = Window(handle, experts.bytes, writable=False)
    far.map(0, experts.pages)
    bind_shared(template, shared_tensors(near, shared))
    gate_up, down = expert_tensors(far, experts)
    attached_s = time.perf_counter() - began_s
    grown = private_bytes() - private
    weights = dict(template.state_dict())
    outside = [w for w in weights.values() if not is_inside(w, near)]
    slots = [part[slot] for slot in experts.slots.values() for part in (gate_up, down)]
    outside += [part for part in slots if not is_inside(part, far)]
    bound = sum(place.bytes for place in shared.places.values()) + len(experts.slots) * SHAPE.bytes
    began_s = time.perf_counter()
    for window in (near, far):
        window.prefault(0, window.bytes)
    return {
        "attach_s": attached_s,
        "bytes_copied": sum(each.numel() * each.element_size() for each in outside),
        "outside": len(outside),
        "bytes_bound": bound,
        "private_bytes": grown,
        "prefault_s": time.perf_counter() - began_s,
    }


def hugging_face(folder: Path, socket: Path) -> dict[str, float]:
    """`from_pretrained` with a warm page cache, the better of two."""
    from transformers import AutoModelForCausalLM

    times = []
    for _ in range(2):
        began_s = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        times.append(time.perf_counter() - began_s)
        del model
    return {"load_hf_s": min(times)}


def main() -> None:
    """Run one mode."""
    modes = {"load": load, "attach": attach, "hf": hugging_face}
    figures = modes[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
