"""What does memory that outlives its workers buy, and what does it cost? One bench, four parts.

    attach     a model of more than 4 GiB: bound without a copy, against loading it
    re-spread  1 GiB of experts: the flip and the whole change, against copy and swap
    waste      ten real adapters at true shapes: bytes of pages by bytes of experts
    cycles     attach, scale, detach and kill -9, again and again: what is left over

Each part runs moectl and its baselines side by side; nothing is left out of the summary. Times are
of the device that is printed, on touched pages unless a key says cold.
"""

from collections.abc import Callable
from pathlib import Path

from .frame import BenchOptions, BenchResult, Results
from .memory_attach import attach_bench
from .memory_cycles import cycles_bench
from .memory_respread import respread_bench
from .memory_waste import waste_bench

Part = Callable[[BenchOptions], tuple[Results, dict[str, float]]]

NOTES = (
    "attach_s: median; load_warm_s and load_hf_s: warm page cache; all three in processes of "
    "their own, one after another",
    "touched: cold loading writes into pages without memory, warm loading into the same pages "
    "again; the benches' HMM touches none ahead, touched_pages_* are the file's own blocks",
    "flip_ms: the worse of two cases, each a median; the largest single flip stands beside it",
    "peak_bytes_ratio: memfd blocks plus grown private memory of this process and the HMM, minus "
    "one staging expert, by the device's layout",
)


def run(options: BenchOptions) -> BenchResult:
    """All parts; the cheap and exact ones first."""
    results: Results = {}
    summary: dict[str, float] = {}
    parts: tuple[Part, ...] = (waste_bench, cycles_bench, respread_bench, attach_bench)
    for part in parts:
        rows, figures = part(options)
        results |= rows
        summary |= figures
    return BenchResult("memory", options.seed, results, summary, notes=NOTES)


def draw(result: BenchResult, path: Path) -> None:
    """Times of attaching and loading, and of the flip and the whole change, on one log scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    summary = result.summary
    bars = {
        "attach": summary["attach_s"],
        "load, touched pages": summary["load_warm_s"],
        "from_pretrained": summary["load_hf_s"],
        "flip": summary["flip_ms"] / 1e3,
        "re-spread by remap": summary["remap_total_ms"] / 1e3,
        "re-spread by copy": summary["copy_total_ms"] / 1e3,
    }
    figure, axes = pyplot.subplots(figsize=(8, 3.5), layout="constrained")
    places = axes.barh(list(bars), list(bars.values()))
    axes.bar_label(places, [f"{seconds:.3g} s" for seconds in bars.values()], padding=3)
    axes.set_xscale("log")
    axes.set_xlabel("seconds")
    axes.invert_yaxis()
    axes.set_title(f"{summary['model_bytes'] / 2**30:.1f} GiB model, 2 x 1 GiB of experts")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
