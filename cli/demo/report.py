"""What does the demo print at its end? One JSON object with fixed keys, and a table made from it.
Pure.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...core.units import format_bytes
from ..fleet_view import TransitionView
from ..scaling import bytes_moved, ready_s
from . import metrics, residency
from .metrics import Trace, Window


@dataclass(frozen=True, slots=True)
class ScaleRun:
    """One scale of the demo with the quiet times before and after it."""

    transition: TransitionView
    window: Window  # from accepted to retired
    steady_before: Window
    steady_after: Window


@dataclass(frozen=True, slots=True)
class KillRun:
    """The killed worker."""

    device: str
    pid: int
    killed_at: float
    recovered_at: float

    @property
    def window(self) -> Window:
        """From the kill until the width was whole again."""
        return Window(self.killed_at, self.recovered_at)


@dataclass(slots=True)
class Evidence:
    """Everything that a run of the demo has seen."""

    reference: dict[tuple[int, int], str] = field(default_factory=dict)
    traces: list[Trace] = field(default_factory=list)
    sent: int = 0
    samples: Sequence[residency.Sample] = ()
    scales: list[ScaleRun] = field(default_factory=list)
    kill: KillRun | None = None
    startup_s: float = 0.0
    total_s: float = 0.0
    leaked: int = 0


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how it ran."""

    commit: str
    device: str
    seed: int
    command: str
    cores: int


def build_report(evidence: Evidence, setting: Setting) -> dict[str, Any]:
    """The demo's JSON."""
    return {
        "bench": "demo",
        "commit": setting.commit,
        "device": setting.device,
        "seed": setting.seed,
        "command": setting.command,
        "cores": setting.cores,
        "startup_s": round(evidence.startup_s, 3),
        "total_s": round(evidence.total_s, 3),
        "requests": _requests(evidence),
        "scales": [_scale(evidence, run) for run in evidence.scales],
        "worker_kill": _kill(evidence),
        "leaked_processes": evidence.leaked,
    }


def _requests(evidence: Evidence) -> dict[str, int]:
    ok = sum(trace.is_ok for trace in evidence.traces)
    return {
        "sent": evidence.sent,
        "ok": ok,
        "failed": evidence.sent - ok,  # one that never ended has failed too
        "moved": sum(trace.moves > 0 for trace in evidence.traces),
        "replayed": sum(trace.replays > 0 for trace in evidence.traces),
        "token_mismatches": metrics.mismatches(evidence.traces, evidence.reference),
    }


def _scale(evidence: Evidence, run: ScaleRun) -> dict[str, Any]:
    traces, transition = evidence.traces, run.transition
    prediction = transition.prediction
    steady = (run.steady_before, run.steady_after)
    moved = bytes_moved(transition)
    return {
        "from": transition.from_width,
        "to": transition.to_width,
        "ready_s": _round(ready_s(transition)),
        "longest_gap_ms": _round(metrics.longest_gap_ms(traces, run.window, replayed=False)),
        "steady_p99_itl_ms": _round(max(metrics.steady_p99_ms(traces, each) for each in steady)),
        "replay_gap_ms": _round(metrics.longest_gap_ms(traces, run.window, replayed=True)),
        "bytes_moved": int(moved if moved is not None else prediction["bytes_moved"]),
        "bytes_lower_bound": int(prediction["bytes_lower_bound"]),
        "peak_bytes_ratio": _round(residency.peak_ratio(evidence.samples, run.window)),
        "steps_cross_node": int(prediction["steps_cross_node"]),
    }


def _kill(evidence: Evidence) -> dict[str, Any]:
    kill = evidence.kill
    if kill is None:
        return {"recovered_s": None, "failed": None, "replay_gap_ms": None}
    return {
        "recovered_s": _round(kill.recovered_at - kill.killed_at),
        "failed": metrics.failures_in(evidence.traces, kill.window),
        "replay_gap_ms": _round(
            metrics.longest_gap_ms(evidence.traces, kill.window, replayed=True)
        ),
    }


def is_good(report: Mapping[str, Any]) -> bool:
    """Whether the promises that do not depend on speed were kept."""
    requests, kill = report["requests"], report["worker_kill"]
    return (
        requests["failed"] == 0
        and requests["token_mismatches"] == 0
        and requests["sent"] > 0
        and kill["failed"] == 0
        and report["leaked_processes"] == 0
    )


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """The report for a person."""
    requests, kill = report["requests"], report["worker_kill"]
    rows = [
        (
            "scale",
            "ready",
            "longest gap",
            "steady p99",
            "replay gap",
            "moved",
            "least",
            "peak",
            "cross node",
        )
    ]
    for scale in report["scales"]:
        rows.append(
            (
                f"{scale['from']} -> {scale['to']}",
                f"{scale['ready_s']:.2f} s" if scale["ready_s"] is not None else "never",
                f"{scale['longest_gap_ms']:.0f} ms",
                f"{scale['steady_p99_itl_ms']:.0f} ms",
                f"{scale['replay_gap_ms']:.0f} ms",
                format_bytes(scale["bytes_moved"]),
                format_bytes(scale["bytes_lower_bound"]),
                f"{scale['peak_bytes_ratio']:.2f}x",
                f"{scale['steps_cross_node']} steps",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    recovered = "never" if kill["recovered_s"] is None else f"after {kill['recovered_s']:.2f} s"
    return [
        *lines,
        f"kill -9 of a worker: whole again {recovered}, {kill['failed']} failed requests",
        f"requests: {requests['sent']} sent, {requests['ok']} ok, {requests['failed']} failed, "
        f"{requests['moved']} moved with their KV, {requests['replayed']} replayed, "
        f"{requests['token_mismatches']} with other text than in the run that never scaled",
        f"up in {report['startup_s']:.1f} s, all in {report['total_s']:.1f} s on "
        f"{report['cores']} cores, {report['leaked_processes']} processes left behind",
    ]


def to_text(report: Mapping[str, Any]) -> str:
    """The report as JSON."""
    return json.dumps(report, indent=2)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
