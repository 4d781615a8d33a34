"""How much faster is attaching to weights in memory than loading them? Methods in one process tree.

All with a warm page cache, in sequence, each in a process of its own: transformers' loader, ours
into pages that nobody has touched and into touched ones, and attaching.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ...core.errors import MoectlError, RefusedError
from .frame import BenchOptions
from .memory_hmm import bench_hmm, touched_pages
from .memory_model import GIB, MODEL, write_model

PAGE_BYTES = 2 << 20
MEMORY_BYTES_MIN = 12 * GIB  # pages and one model of transformers', with room for both


def attach_bench(options: BenchOptions) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Results per method and the keys of the summary."""
    _check_memory()
    with tempfile.TemporaryDirectory(prefix="moectl-bench-model-") as folder:
        total = write_model(Path(folder), options.seed, options.report)
        hbm = total + 64 * PAGE_BYTES
        options.report("attach: from_pretrained", f"{total / GIB:.2f} GiB")
        hf = _worker("hf", folder, "-")
        with bench_hmm({"d0": (hbm, PAGE_BYTES)}) as hmm:
            options.report("attach: loading into pages", "")
            fresh = touched_pages(hmm)
            loaded = _worker("load", folder, str(hmm.socket))
            loaded |= {"touched_pages_before": fresh, "touched_pages_after": touched_pages(hmm)}
            options.report("attach: attaching", "")
            attached = _worker("attach", folder, str(hmm.socket))
    summary = {
        "model_bytes": total,
        "attach_s": attached["attach_s"],
        "load_warm_s": loaded["load_warm_s"],
        "load_hf_s": hf["load_hf_s"],
        "attach_speedup": loaded["load_warm_s"] / attached["attach_s"],
        "bytes_copied": int(attached["bytes_copied"]),
    }
    results = {"attach": attached, "load": loaded, "from_pretrained": hf}
    results["attach"]["experts"] = MODEL.layers * MODEL.experts
    return results, summary


def _worker(mode: str, folder: str, socket: str) -> dict[str, float]:
    argv = [sys.executable, "-P", "-m", "moectl.cli.bench.memory_worker", mode, folder, socket]
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environment = {**os.environ, **quiet, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=600, check=False, env=environment
    )
    if done.returncode != 0:
        raise MoectlError(f"the {mode} process of the bench failed: {done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _check_memory() -> None:
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:") and int(line.split()[1]) * 1024 < MEMORY_BYTES_MIN:
            raise RefusedError(
                f"{int(line.split()[1]) / (1 << 20):.1f} GiB of memory are free, the attach bench "
                f"needs {MEMORY_BYTES_MIN / GIB:.0f} GiB",
                next_step="end other work on this machine",
            )
