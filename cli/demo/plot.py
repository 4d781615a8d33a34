"""What does a run of the demo look like as a picture? Gaps over time, memory and width below it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .metrics import gaps_of
from .report import Evidence

BLUE, ORANGE, RED, GREY = "#2563eb", "#ea8a00", "#dc2626", "#6b7280"


def draw(evidence: Evidence, report: Mapping[str, Any], path: Path) -> None:
    """Draw gaps between tokens, expert memory and the phases into a picture file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, bottom) = pyplot.subplots(
        2, 1, figsize=(11, 6.5), sharex=True, height_ratios=(3, 1.2), layout="constrained"
    )
    zero = min((trace.sent_at for trace in evidence.traces), default=0.0)
    _draw_gaps(top, evidence, zero)
    _draw_changes((top, bottom), evidence, zero)
    _draw_memory(bottom, evidence, zero)
    requests = report["requests"]
    figure.suptitle(
        f"moectl demo on {report['device']}: {requests['sent']} requests, "
        f"{requests['failed']} failed, {requests['token_mismatches']} with other text"
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw_gaps(axis: Any, evidence: Evidence, zero: float) -> None:
    stayed: list[tuple[float, float]] = []
    replayed: list[tuple[float, float]] = []
    for trace in evidence.traces:
        target = replayed if trace.replays else stayed
        target.extend((gap.end - zero, gap.milliseconds) for gap in gaps_of(trace))
    for points, colour, label in (
        (stayed, BLUE, "requests that stayed"),
        (replayed, ORANGE, "requests that were replayed"),
    ):
        if points:
            x, y = zip(*points, strict=True)
            axis.scatter(x, y, s=4, color=colour, alpha=0.5, linewidths=0, label=label)
    axis.set_yscale("log")
    axis.set_ylabel("ms between tokens")
    axis.grid(True, axis="y", color="#e5e7eb", linewidth=0.6)
    axis.legend(loc="upper left", markerscale=3, frameon=False)


def _draw_changes(axes: tuple[Any, ...], evidence: Evidence, zero: float) -> None:
    for run in evidence.scales:
        start, end = run.window.start - zero, run.window.end - zero
        for axis in axes:
            axis.axvspan(start, end, color=GREY, alpha=0.15, linewidth=0)
        text = f"{run.transition.from_width}→{run.transition.to_width}"
        axes[0].annotate(
            text, (start, 1.0), xycoords=("data", "axes fraction"), va="bottom", fontsize=9
        )
    if evidence.kill is not None:
        start, end = evidence.kill.killed_at - zero, evidence.kill.recovered_at - zero
        for axis in axes:
            axis.axvspan(start, end, color=RED, alpha=0.12, linewidth=0)
        axes[0].annotate(
            "kill -9",
            (start, 1.0),
            xycoords=("data", "axes fraction"),
            va="bottom",
            fontsize=9,
            color=RED,
        )


def _draw_memory(axis: Any, evidence: Evidence, zero: float) -> None:
    x = [sample.at - zero for sample in evidence.samples]
    y = [sample.expert_bytes / 2**20 for sample in evidence.samples]
    axis.step(x, y, where="post", color=BLUE, linewidth=1.2)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("experts, MiB")
    axis.set_xlabel("seconds since the first request")
    axis.grid(True, axis="y", color="#e5e7eb", linewidth=0.6)
