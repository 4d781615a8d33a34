"""What is measured on any fleet: changes of width under steady streaming, and their rows."""

import time
from collections.abc import Callable, Sequence

from ...core.dtypes import DTYPE_BYTES, FLOAT32, expert_dtype
from ...core.facts import read_model_facts
from ...core.plan import Pace
from ...core.units import parse_bytes
from ..demo.metrics import Window, mismatches
from ..demo.traffic import Traffic
from .frame import Results
from .scale_figures import Act, Bytes, by_name, row_of
from .scale_fleet import BenchFleet, Shape

BLOCK_TOKENS = 16  # the spec's default
DRAIN_S = 120.0
SETTLE_S = 0.5

#: Answers of a fleet that never scaled, by conversation and turn.
Reference = dict[tuple[int, int], str]


def run_acts(
    fleet: BenchFleet,
    traffic: Traffic,
    widths: Sequence[int],
    quiet: Callable[[], Window],
    pace: Pace = Pace.GENTLE,
) -> Results:
    """Change the width again and again under a traffic; a row for each kind of change."""
    residency, acts = fleet.residency(), list[Act]()
    residency.start()
    traffic.start()
    try:
        before, kv_before = quiet(), fleet.kv_blocks()
        for width in widths:
            transition = fleet.scale(width, pace)
            after, kv_after = quiet(), fleet.kv_blocks()
            acts.append(Act(transition, before, after, kv_before, kv_after))
            before, kv_before = after, kv_after
    finally:
        traffic.stop(DRAIN_S)
        residency.stop()
    sizes = sizes_of(fleet.shape)
    return {
        name: row_of(group, traffic.traces, residency.samples, sizes)
        for name, group in by_name(acts).items()
    }


def quiet_window(seconds: float) -> Window:
    """Let things settle, and then a time without any change."""
    time.sleep(SETTLE_S)
    start = time.time()
    time.sleep(seconds)
    return Window(start, time.time())


def losses(traffic: Traffic, reference: Reference) -> dict[str, int]:
    """What went wrong with the requests of a traffic that has ended."""
    unfinished = traffic.sent - len(traffic.traces)
    return {
        "failed": sum(not trace.is_ok for trace in traffic.traces) + unfinished,
        "token_mismatches": mismatches(traffic.traces, reference),
    }


def held_dtype(shape: Shape) -> str:
    """As the workers hold experts on a cpu device."""
    return expert_dtype("auto", shape.precision, read_model_facts(shape.folder).dtype)


def sizes_of(shape: Shape) -> Bytes:
    """What an expert and a KV block take on a device of this fleet."""
    facts, page = read_model_facts(shape.folder), parse_bytes(shape.page)
    element = DTYPE_BYTES[held_dtype(shape)]
    expert = -(-facts.expert_bytes(element) // page) * page
    return Bytes(expert, facts.kv_bytes_per_token(DTYPE_BYTES[FLOAT32]) * BLOCK_TOKENS)
