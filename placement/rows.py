"""What does a table of measured serving rows say, and which of its rows can be believed?

Reads the columns of the public silicon set. Rules look at labels and physics only, never at what
the model predicts: each names the rows that it leaves out. Labels that count devices twice are put
right first, because their twins with the right labels are in the same table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .campaigns import RECIPE, campaign, mean_lengths, traffic
from .hardware import Hardware
from .layouts import Layout
from .model_facts import ModelShape
from .quantities import PRECISIONS, Precision
from .terms import Site
from .weigh import Point, decode_terms, prefill_terms

COLUMNS = (
    "model_path",
    "system",
    "backend",
    "backend_version",
    "precision",
    "isl",
    "osl",
    "gemm_quant_mode",
    "batch_size",
    "tp_size",
    "pp_size",
    "attention_dp_size",
    "moe_tp_size",
    "moe_ep_size",
    "measured_ttft_ms",
    "measured_tpot_ms",
)

#: Seconds a layer costs whatever it computes. A device launches kernels in a captured graph; a cpu
#: runs the tensor library's own code between them.
LAYER_S = {"": 30e-6, "cpu": 1e-3}


@dataclass(frozen=True, slots=True)
class Row:
    """One measured point, labels put right. `line` counts from 2 as in the file."""

    line: int
    model: str
    shape: ModelShape
    device: str
    hardware: Hardware
    engine: str
    version: str
    precision: Precision
    layout: Layout
    batch: int  # running requests of each attention replica
    input_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float
    is_relabelled: bool = False
    campaign: str = RECIPE  # how it was measured, see `placement.campaigns`

    @property
    def point(self) -> Point:
        """The row as something to predict."""
        site = Site(self.shape, self.hardware, self.layout, self.precision)
        lengths = mean_lengths(self.campaign, (self.input_tokens, self.output_tokens))
        has_fp4 = "fp4" in dict(self.hardware.flops)
        arrives = traffic(self.campaign, self.engine, has_fp4, self.batch * self.layout.dp)
        return Point(site, self.engine, self.batch, *lengths, traffic=arrives)

    @property
    def group(self) -> tuple[str, str, str]:
        """Rows that share a model, an engine and a device."""
        return self.model, self.engine, self.device

    @property
    def labels(self) -> tuple[object, ...]:
        """Everything that was chosen, without the engine's version."""
        return (
            *self.group,
            self.precision.name,
            self.layout,
            self.input_tokens,
            self.output_tokens,
            self.batch,
        )


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that a rule left out of the score; `what` is all, or ttft alone."""

    line: int
    rule: str
    what: str = "all"


def read_rows(
    table: Sequence[Mapping[str, str]],
    shapes: Mapping[str, tuple[str, ModelShape]],
    devices: Mapping[str, Hardware],
) -> tuple[list[Row], list[LeftOut]]:
    """Rows of a parsed CSV; unknown models, devices and broken numbers are left out by name."""
    rows: list[Row] = []
    left: list[LeftOut] = []
    for line, record in enumerate(table, 2):
        known = shapes.get(record["model_path"])
        hardware = devices.get(record["system"])
        if known is None or hardware is None:
            left.append(LeftOut(line, "unknown_model" if known is None else "unknown_device"))
            continue
        try:
            rows.append(_row(line, record, known, hardware))
        except ValueError:
            left.append(LeftOut(line, "unreadable"))
    return _campaigns(rows), left


def _campaigns(rows: Sequence[Row]) -> list[Row]:
    """The same rows with the habit of the load generator behind each."""
    lengths: dict[object, set[tuple[int, int]]] = {}
    for row in rows:
        asked = lengths.setdefault((*row.group, row.version), set())
        asked.add((row.input_tokens, row.output_tokens))
    return [
        replace(
            row,
            campaign=campaign(
                (row.input_tokens, row.output_tokens), lengths[(*row.group, row.version)]
            ),
        )
        for row in rows
    ]


def _row(
    line: int, record: Mapping[str, str], known: tuple[str, ModelShape], hardware: Hardware
) -> Row:
    name, shape = known
    tp, dp, etp, ep = (
        int(record[key] or 0) or 1
        for key in ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
    )
    labels = _put_right(tp, dp, etp, ep) if shape.is_moe else (tp, dp, 1, 1)
    tp2, dp2, ep2, batches = labels
    ttft, tpot = float(record["measured_ttft_ms"]), float(record["measured_tpot_ms"])
    if not (ttft > 0 and tpot > 0):
        raise ValueError("no measurement")
    return Row(
        line=line,
        model=name,
        shape=shape,
        device=record["system"],
        hardware=hardware,
        engine=record["backend"],
        version=record["backend_version"],
        precision=_precision(record, name, shape),
        layout=Layout(
            tp=tp2, pp=int(record["pp_size"] or 1), dp=dp2, ep=ep2 if tp2 * dp2 % ep2 == 0 else 1
        ),
        batch=int(record["batch_size"]) * batches,
        input_tokens=int(record["isl"]),
        output_tokens=int(record["osl"]),
        ttft_s=ttft / 1e3,
        tpot_s=tpot / 1e3,
        is_relabelled=(tp2, dp2) != (tp, dp),
    )


def _put_right(tp: int, dp: int, etp: int, ep: int) -> tuple[int, int, int, int]:
    """(tp, dp, ep, factor of the batch): labels that multiply the same devices with themselves.

    tp64 etp8 ep8 is a node of eight with tp8 ep8 (its twin is in the table); tp1 dp64 etp8 ep8 is
    dp8 ep8 with eight times the batch; tp2 dp2 ep4 is tp2 ep2 with twice the batch.
    """
    devices = tp * dp
    if etp > 1 and ep == etp and etp * ep == devices:
        if tp == devices:
            return tp // ep, dp, ep, 1
        return tp, dp // ep, ep, ep
    if tp > 1 and tp == dp and ep == devices:
        return tp, 1, tp, dp
    return tp, dp, min(ep, devices), 1


def _precision(record: Mapping[str, str], name: str, shape: ModelShape) -> Precision:
    if name.startswith("gpt-oss"):
        return PRECISIONS["mxfp4-experts"]  # published in no other
    mode = record["gemm_quant_mode"] or record["precision"]
    if mode in ("nvfp4", "fp4"):
        return PRECISIONS["nvfp4-experts" if shape.is_moe else "nvfp4"]
    return PRECISIONS.get(mode, PRECISIONS["bf16"])


def believe(rows: Sequence[Row]) -> tuple[list[Row], list[LeftOut]]:
    """Rows to score, and those left out with their rule; `what` = ttft keeps a row's TPOT."""
    left: list[LeftOut] = []
    kept = _unique(rows, left)
    for rule in (_breaks_physics, _waits):
        found = [(row, rule(row)) for row in kept]
        left += [LeftOut(row.line, name) for row, name in found if name]
        kept = [row for row, name in found if not name]
    speculative = _speculative(kept)
    left += [LeftOut(row.line, "speculative") for row in kept if row.line in speculative]
    kept = [row for row in kept if row.line not in speculative]
    for rule_name, lines in (("falls_with_batch", _falls(kept)), ("unsteady", _unsteady(kept))):
        left += [LeftOut(line, rule_name, "ttft") for line in sorted(lines)]
    return kept, left


def _unique(rows: Sequence[Row], left: list[LeftOut]) -> list[Row]:
    """One of every set of rows with the same labels and the same two numbers."""
    seen: set[object] = set()
    kept = []
    for row in rows:
        key = (row.labels, row.ttft_s, row.tpot_s)
        if key in seen:
            left.append(LeftOut(row.line, "duplicate"))
        else:
            seen.add(key)
            kept.append(row)
    return kept


def _floors(row: Row) -> tuple[float, float]:
    """Data-sheet seconds of a decode step and of a prefill, without any overhead."""
    a, b = decode_terms(row.point), prefill_terms(row.point)
    step = max(a.linear_read, a.linear_math) + max(a.expert_read, a.expert_math)
    step += max(a.cache_read, a.attention_math) + a.head
    prefill = max(b.linear_read, b.linear_math) + max(b.expert_read, b.expert_math)
    return step, prefill + b.attention_math


def _breaks_physics(row: Row) -> str:
    """Faster than the data sheet allows, or eight times slower than with a usual launch time."""
    step, prefill = _floors(row)
    if row.tpot_s < 0.9 * step:
        return "faster_than_memory"
    share = row.batch / row.output_tokens * prefill
    slow = 8 * (step + share + LAYER_S.get(row.hardware.kind, LAYER_S[""]) * row.shape.layers)
    return "off_scale" if row.tpot_s > slow else ""


def _waits(row: Row) -> str:
    """Requests stood in a queue, so the number that ran together is unknown."""
    kind = row.precision.expert_type if row.shape.is_moe else row.precision.linear_type
    rate = row.layout.devices * row.hardware.peak(kind) / 10
    tokens = row.batch * row.layout.dp * row.input_tokens
    if row.ttft_s > 1.0 + tokens * 2 * row.shape.active_parameters / rate:
        return "queued"
    return "cache_full" if row.batch > 1.0 * running_that_fit(row) else ""


def running_that_fit(row: Row) -> float:
    """Requests whose whole cache fits beside the weights, at the narrowest cache type in use."""
    shape, layout, precision = row.shape, row.layout, row.precision
    experts = shape.expert_parameters
    rest = shape.total_parameters - experts - shape.embedding_parameters - shape.head_parameters
    weights = rest * precision.linear_bytes / layout.tp
    weights += experts * precision.expert_bytes / layout.stage_devices
    weights += (shape.embedding_parameters + shape.head_parameters) * 2 / layout.tp
    free = row.hardware.hbm_bytes * 0.9 - weights - 2e9
    shards = min(layout.tp, shape.kv_heads)
    one = shape.kv_elements(row.input_tokens + row.output_tokens) / shards
    return free / (one * (2 if precision.name == "bf16" else 1))


def _twins(rows: Sequence[Row]) -> list[list[Row]]:
    by_labels: dict[object, list[Row]] = {}
    for row in rows:
        by_labels.setdefault(row.labels, []).append(row)
    return [twins for twins in by_labels.values() if len(twins) > 1]


def _speculative(rows: Sequence[Row]) -> set[int]:
    """Models with a draft head whose labels were measured twice, a quarter apart or more: the fast
    one speculated without saying so, and so may the rest of its version that has no slow twin."""
    fast: set[int] = set()
    slow: set[int] = set()
    for twins in _twins(rows):
        slowest = max(row.tpot_s for row in twins)
        if slowest / min(row.tpot_s for row in twins) > 1.25:
            for row in twins:
                (fast if slowest / row.tpot_s > 1.25 else slow).add(row.line)
    versions = {(*row.group, row.version) for row in rows if row.line in fast}
    return {
        row.line
        for row in rows
        if row.shape.mtp_parameters
        and (row.line in fast or ((*row.group, row.version) in versions and row.line not in slow))
    }


def _falls(rows: Sequence[Row]) -> set[int]:
    """First tokens that come 1.3 times sooner when more requests run are cold starts."""
    alike: dict[object, list[Row]] = {}
    for row in rows:
        alike.setdefault((*row.labels[:-1], row.version), []).append(row)
    return {
        a.line
        for group in alike.values()
        for a in group
        for b in group
        if b.batch > a.batch and a.ttft_s > 1.3 * b.ttft_s
    }


def _unsteady(rows: Sequence[Row]) -> set[int]:
    """The same prompt, load and version, only other outputs: first tokens twice apart or more."""
    alike: dict[object, list[Row]] = {}
    for row in rows:
        key = (*row.group, row.version, row.precision.name, row.layout, row.input_tokens, row.batch)
        alike.setdefault(key, []).append(row)
    return {
        row.line
        for group in alike.values()
        for a in group
        for b in group
        if a.ttft_s > 2 * b.ttft_s
        for row in (a, b)
    }
