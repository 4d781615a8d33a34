"""The picture of the balance bench: every load on itself, and every load when it was left out."""

from pathlib import Path
from typing import Any

from .frame import BenchResult, Results


def draw_balance(result: BenchResult, path: Path) -> None:
    """Two panels a layout: planned on this load, and planned on the others."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = result.results
    layouts = list(dict.fromkeys(n.split()[1] for n in rows if n.startswith("transferred ")))
    figure, axes = pyplot.subplots(
        2, len(layouts), figsize=(6.5 * len(layouts), 8), layout="constrained", squeeze=False
    )
    for column, case in enumerate(layouts):
        own = _by_file(rows, f"{case} ", "balancedness")
        _bars(axes[0][column], own, ("eplb hierarchical", "eplb", "ours, equal", "ours"))
        axes[0][column].set_title(f"{case} (slots/devices): planned on this load")
        moved = _by_file(rows, f"transferred {case} to ", "split")
        equal = _by_file(rows, f"transferred {case} to ", "equal")
        shown = {
            file: {
                "mean load, eplb": equal[file]["mean, eplb"],
                "mixture, equal shares": equal[file]["ours"],
                "mixture, tokens split": methods["ours"],
            }
            for file, methods in moved.items()
        }
        _bars(axes[1][column], shown, tuple(next(iter(shown.values()))))
        axes[1][column].set_title(f"{case}: planned without this load")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _by_file(rows: Results, begin: str, key: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name, row in rows.items():
        if name.startswith(begin) and key in row:
            file, _, method = name[len(begin) :].partition(": ")
            found.setdefault(file, {})[method] = row[key]
    return found


def _bars(axes: Any, rows: dict[str, dict[str, float]], methods: tuple[str, ...]) -> None:
    shown = [m for m in methods if all(m in row for row in rows.values())]
    high = 0.8 / max(1, len(shown))
    colours = ["#b9b2a5", "#8d99ae", "#6aa7c8", "#1d6fa5"][-len(shown) :]
    for at, (method, colour) in enumerate(zip(shown, colours, strict=True)):
        places = [place + at * high for place in range(len(rows))]
        values = [row[method] for row in rows.values()]
        bars = axes.barh(places, values, high, label=method, color=colour)
        axes.bar_label(bars, fmt="%.3f", fontsize=6, padding=2)
    low = min(row[m] for row in rows.values() for m in shown)
    axes.set_yticks([place + 0.4 - high / 2 for place in range(len(rows))], list(rows))
    axes.invert_yaxis()
    axes.set_xlim(max(0.0, low - 0.08), 1.04)
    axes.axvline(1.0, color="black", linewidth=0.6)
    axes.set_xlabel("mean / largest load of a device, mean over layers")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=4, frameon=False)
