"""How long do tokens take under a steady load? Rows that `moectl calibrate` can learn from.

A closed loop on the live engine: always the same number of requests of one length, a new one when
one ends. That is what the planner's time model predicts: a first token, and every further one.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from time import perf_counter
from typing import Any

from .measure import LiveEngine
from .space import Value

#: Waves of requests of one cell; the first fills the engine and is not counted.
WAVES = 3
#: Rounds of a cell; the fastest counts, since other work only ever makes one slower.
ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Cell:
    """A steady load: requests that run together, and the tokens of each."""

    running: int
    input_tokens: int
    output_tokens: int


#: From one request to many, from short prompts to long, so that every term of the model shows.
CELLS = (
    *(Cell(running, size, 16) for size in (32, 128) for running in (1, 4, 16)),
    Cell(1, 384, 16),
    Cell(4, 384, 16),
    Cell(8, 64, 48),
    Cell(2, 256, 8),
)


@dataclass(frozen=True, slots=True)
class Steady:
    """A measured cell: mean seconds to the first token, and per further token."""

    cell: Cell
    ttft_s: float
    tpot_s: float


def measure_cell(
    live: LiveEngine, spec: Mapping[str, Any], settings: Mapping[str, Value], cell: Cell, seed: int
) -> Steady:
    """The fastest of some rounds. Raises EngineRefused when the cell never fits."""
    with live.threads(settings):
        rounds = [_round(live, spec, settings, cell, seed + turn) for turn in range(ROUNDS)]
    return min(rounds, key=lambda each: each.tpot_s)


def _round(
    live: LiveEngine, spec: Mapping[str, Any], settings: Mapping[str, Value], cell: Cell, seed: int
) -> Steady:
    import numpy as np

    from ...agents.engine.request import Request

    # Nothing in common: a prefix cache would answer what is to be measured.
    random, engine = np.random.default_rng(seed), live.open(spec, settings)
    total, coming, ended, clock_s = cell.running * WAVES, 0, 0, 0.0
    came, first, last = ([0.0] * total for _ in range(3))
    while ended < total:
        began = perf_counter()
        while coming < min(total, ended + cell.running):
            prompt = random.integers(1, live.vocab, cell.input_tokens).tolist()
            engine.submit(Request(str(coming), tuple(prompt), cell.output_tokens))
            came[coming] = clock_s
            coming += 1
        plan = engine.plan()
        result = engine.run(plan, live.moe) if plan else None
        clock_s += perf_counter() - began
        for token in result.tokens if result else ():
            at = int(token.request_id)
            first[at] = clock_s if token.index == 0 else first[at]
            last[at] = clock_s
        ended += len(result.dones) if result else 0
    counted = range(cell.running, total)
    return Steady(
        cell,
        fmean(first[at] - came[at] for at in counted),
        fmean((last[at] - first[at]) / (cell.output_tokens - 1) for at in counted),
    )


def rows_csv(found: Sequence[Steady], model: str, device: str, version: str) -> str:
    """The columns that `moectl calibrate` reads; `model` and `device` are paths."""
    from ...placement.rows import COLUMNS

    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    for each in found:
        ones = dict.fromkeys(
            ("tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size"), 1
        )
        writer.writerow(
            {
                "model_path": model,
                "system": device,
                "backend": "moectl",
                "backend_version": version,
                "precision": "float32",
                "gemm_quant_mode": "float32",
                "isl": each.cell.input_tokens,
                "osl": each.cell.output_tokens,
                "batch_size": each.cell.running,
                **ones,
                "measured_ttft_ms": round(each.ttft_s * 1e3, 4),
                "measured_tpot_ms": round(each.tpot_s * 1e3, 4),
            }
        )
    return out.getvalue()


def device_sheet(bytes_per_s: float, flops: float, hbm_bytes: int) -> str:
    """A device sheet of this machine's core, as `moectl plan --fleet` and `calibrate` read it."""
    import yaml

    rates = {"GBs": round(bytes_per_s / 1e9, 3), "latencyUs": 20.0}
    sheet = {
        "name": "local-cpu",
        "title": "one core of this machine, as measured",
        "vendor": "local",
        "kind": "cpu",
        "hbm": hbm_bytes,
        "bandwidthTBs": bytes_per_s / 1e12,
        "peakTflops": {"bf16": flops / 1e12},
        "links": {
            tier: {"devices": count, **rates}
            for tier, count in (("device", 1), ("node", 8), ("rack", 64), ("fleet", 100_000))
        },
    }
    note = "# Measured by `moectl tune`; bf16 stands for float32, which a cpu computes in.\n"
    return note + yaml.safe_dump(sheet, sort_keys=False)


def measure_device() -> tuple[float, float]:
    """(bytes per second read from memory, float32 operations per second) of one thread.

    The engine's own linear kernel and a sum over an array that fits no cache; the best of several.
    """
    import numpy as np
    import torch

    from ...kernels import dense

    big, times = np.ones(1 << 24, dtype=np.float32), []
    for _ in range(5):
        began = perf_counter()
        float(big.sum())
        times.append(perf_counter() - began)
    bytes_per_s = big.nbytes / min(times)
    x_NK, weight_OK = torch.ones(256, 512), torch.ones(512, 512)
    times = []
    for _ in range(8):
        began = perf_counter()
        dense.linear(x_NK, weight_OK)
        times.append(perf_counter() - began)
    return bytes_per_s, 2 * 256 * 512 * 512 / min(times)
