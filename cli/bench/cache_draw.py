"""The picture of `moectl bench cache`: hit rate against slots for every trace, and the recalls."""

from pathlib import Path

from .frame import BenchResult

STYLES = {"min": "k--", "lru": "o-", "trajectory": "s-"}


def draw(result: BenchResult, path: Path) -> None:
    """One panel a trace with a shared pool, and one with the recalls; a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    curves = _curves(result)
    across = -(-(len(curves) + 1) // 2)
    figure, grid = plt.subplots(2, across, figsize=(4.6 * across, 7.6), squeeze=False)
    panels = list(grid.ravel())
    for spare in panels[len(curves) + 1 :]:
        spare.set_visible(False)
    for axes, (trace, lines) in zip(panels, curves.items(), strict=False):
        for policy, points in lines.items():
            points.sort()
            width = 2.2 if policy in ("trajectory", "min") else 1.1
            style = STYLES.get(policy, ".-")
            axes.plot(*zip(*points, strict=True), style, label=policy, lw=width, ms=4)
        axes.set_title(f"{trace}, shared pool", fontsize=9)
        axes.set_xlabel("share of experts resident")
        axes.set_ylabel("hit rate")
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    _draw_recalls(panels[len(curves)], result)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curves(result: BenchResult) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """trace -> policy -> (share, hit rate)."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, row in result.results.items():
        parts = name.split("/")
        if len(parts) == 4 and parts[1] == "shared" and parts[3] != "on-demand":
            point = (row["share"], row["hit_rate"])
            found.setdefault(parts[0], {}).setdefault(parts[3], []).append(point)
    return found


def _draw_recalls(axes: object, result: BenchResult) -> None:
    """Recall@k by look-ahead, online solid and frozen dotted."""
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for name, row in result.results.items():
        parts = name.split("/")
        if len(parts) == 5 and parts[1] == "recall" and parts[0] != "demo":
            ahead = int(parts[4].removeprefix("ahead"))
            lines.setdefault((parts[2], parts[3]), []).append((ahead, row["recall_k"]))
    for (which, mode), points in lines.items():
        points.sort()
        axes.plot(  # type: ignore[attr-defined]
            *zip(*points, strict=True), "o-" if mode == "online" else "x:", label=f"{which} {mode}"
        )
    axes.set_title("recall@k by layers ahead", fontsize=9)  # type: ignore[attr-defined]
    axes.set_ylim(0, 1)  # type: ignore[attr-defined]
    axes.grid(alpha=0.3)  # type: ignore[attr-defined]
    axes.legend(fontsize=6)  # type: ignore[attr-defined]
