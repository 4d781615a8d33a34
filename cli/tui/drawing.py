"""How do view models become coloured text? Pure functions from data to rich `Text`; no widget
here.
"""

from collections.abc import Sequence

from rich.text import Text

from ...core.units import format_bytes
from . import palette
from .bars import PARTS, Bar, cells_of
from .heat import HeatCell, HeatMap
from .page_cells import PageMap
from .rates import Rates
from .rows import Row
from .timeline import Timeline

SPARKS = "▁▂▃▄▅▆▇█"
PHASE_MARKS = {"done": "✓", "running": "▶", "waiting": "·", "undone": "✗"}
PHASE_STYLES = {"done": "good", "running": "busy", "waiting": "dim", "undone": "bad"}


def styled(text: str, meaning: str = "") -> Text:
    """Text in the colour of a meaning."""
    return Text(text, palette.MEANINGS[meaning], no_wrap=True, overflow="ellipsis")


def lines(parts: Sequence[Text]) -> Text:
    """Texts below each other."""
    joined = Text("\n", no_wrap=True, overflow="ellipsis").join(parts)
    joined.no_wrap, joined.overflow = True, "ellipsis"
    return joined


def row_line(row: Row) -> Text:
    """Cells of a row beside each other."""
    line = Text(no_wrap=True, overflow="ellipsis")
    for cell in row:
        if cell.text:
            line.append(cell.text + "  ", palette.MEANINGS[cell.style])
    return line


def table(titles: Sequence[str], rows: Sequence[Row]) -> Text:
    """A table with columns as wide as they need to be."""
    widths = [
        max(len(title), *(len(row[i].text) for row in rows)) if rows else len(title)
        for i, title in enumerate(titles)
    ]
    head = Text("  ".join(t.ljust(w) for t, w in zip(titles, widths, strict=True)), "#7d8796")
    body = []
    for row in rows:
        line = Text()
        for cell, width in zip(row, widths, strict=True):
            line.append(cell.text.ljust(width) + "  ", palette.MEANINGS[cell.style])
        line.rstrip()
        body.append(line)
    return lines([head, *body])


def heat(map_: HeatMap | None, mode: str, cell_columns: int) -> Text:
    """The heat map, coloured by "load" or by "rank"."""
    if map_ is None:
        return styled("no placement yet", "dim")
    texts = []
    for row in map_.rows:
        line = Text(f"{row.layer:>3} ", palette.MEANINGS["dim"])
        for cell in row.cells:
            line.append_text(_heat_cell(cell, mode, cell_columns))
        line.append(f" {row.imbalance:4.2f}" if row.imbalance else "    -", "#7d8796")
        texts.append(line)
    return lines(texts)


def _heat_cell(cell: HeatCell, mode: str, columns: int) -> Text:
    """A coloured cell; from four columns on with its number and a gap to the next."""
    colour = palette.rank_colour(cell.rank) if mode == "rank" else palette.LOAD[cell.level]
    if columns < 4:
        return Text(" " * columns, f"on {colour}")
    number = cell.rank if mode == "rank" else cell.tokens
    ink = palette.INK_DARK if mode == "rank" or cell.level > 3 else palette.INK_LIGHT
    text = f"{number}"[: columns - 1].center(columns - 1)
    return Text(text, f"{ink} on {colour}").append(" ", f"on {palette.GROUND}")


def heat_legend(map_: HeatMap | None, mode: str) -> Text:
    """What the colours mean."""
    line = Text(no_wrap=True, overflow="ellipsis")
    if mode == "rank":
        for rank in range(map_.width if map_ else 0):
            line.append("  ", f"on {palette.rank_colour(rank)}")
            line.append(f" rank {rank} ", palette.MEANINGS["dim"])
    else:
        line.append("idle ", palette.MEANINGS["dim"])
        for colour in palette.LOAD:
            line.append("  ", f"on {colour}")
        line.append(" hottest · right: imbalance", palette.MEANINGS["dim"])
    if map_ is not None and map_.experts_per_cell > 1:
        line.append(f" · a cell is {map_.experts_per_cell} experts", palette.MEANINGS["dim"])
    return line


def bar_line(bar: Bar, width: int, label_width: int) -> Text:
    """One device: its name, its bar, and how full it is."""
    line = Text(bar.device.ljust(label_width) + " ", palette.MEANINGS[""])
    if not bar.is_known:
        line.append("not reported yet", palette.MEANINGS["dim"])
        return line
    cells = cells_of((*bar.pages, bar.free), width)
    for part, count in zip((*PARTS, "free"), cells, strict=True):
        line.append(" " * count, f"on {palette.PARTS[part]}")
    line.append(f" {100 * bar.used_share:3.0f}%", palette.MEANINGS["dim"])
    return line


def bar_numbers(bar: Bar) -> Text:
    """The parts of one device in bytes."""
    line = Text("  ", no_wrap=True, overflow="ellipsis")
    for part, pages in zip((*PARTS, "free"), (*bar.pages, bar.free), strict=True):
        if pages:
            line.append("■ ", palette.PARTS[part] if part != "free" else "#7d8796")
            size = format_bytes(pages * bar.page_bytes)
            line.append(f"{part} {size}  ", palette.MEANINGS["dim"])
    return line


def memory_legend(found: Sequence[Bar]) -> Text:
    """What the colours mean that stand in the bars."""
    line = Text(no_wrap=True, overflow="ellipsis")
    present = [part for i, part in enumerate(PARTS) if any(bar.pages[i] for bar in found)]
    for part in (*present, "free"):
        line.append("  ", f"on {palette.PARTS[part]}")
        line.append(f" {part} ", palette.MEANINGS["dim"])
    return line


def page_map_lines(map_: PageMap, width: int) -> list[Text]:
    """The pages of one device as rows of cells, and in words below."""
    per = "a page" if map_.pages_per_cell == 1 else f"{map_.pages_per_cell} pages"
    size = format_bytes(map_.pages_per_cell * map_.page_bytes)
    found = [styled(f"{map_.device}: {map_.total} pages, a cell is {per} ({size})", "dim")]
    for start in range(0, len(map_.cells), max(1, width)):
        line = Text(no_wrap=True)
        for part in map_.cells[start : start + width]:
            line.append("▪", f"{palette.PARTS[part]} on {palette.GROUND}")
        found.append(line)
    for word in map_.words:
        line = Text("  ", no_wrap=True, overflow="ellipsis")
        line.append("■ ", palette.PARTS[word.part])
        amount = format_bytes(word.pages * map_.page_bytes)
        line.append(f"{amount:>10}  {word.text}", palette.MEANINGS["dim"])
        found.append(line)
    if map_.unsaid:
        more = f"  and {map_.unsaid} more: moectl describe device {map_.device}"
        found.append(styled(more, "dim"))
    return found


def timeline_lines(shown: Timeline) -> list[Text]:
    """Title, phases with seconds, and predicted against actual."""
    title = Text(shown.title, palette.MEANINGS["strong"])
    over = {"done": "good", "forfeited": "bad", "forfeit": "bad"}.get(shown.phase, "busy")
    title.append(f"  {shown.phase}", palette.MEANINGS[over])
    phases = Text()
    for phase in shown.phases:
        text = f"{PHASE_MARKS[phase.state]} {phase.name}{_took(phase.seconds)} "
        phases.append(text, palette.MEANINGS[PHASE_STYLES[phase.state]])
    figures = [
        Text.assemble(
            (f"{figure.name:6}", palette.MEANINGS["dim"]),
            (f"{figure.predicted:>9} → ", palette.MEANINGS["dim"]),
            (f"{figure.actual:>9}", palette.MEANINGS[""]),
        )
        for figure in shown.figures
    ]
    found = [title, phases, *figures]
    if shown.reason:
        found.append(styled(shown.reason, "dim"))
    return found


def _took(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f" {seconds:.2f}s" if seconds < 10 else f" {seconds:.0f}s"


def spark(values: Sequence[float], width: int) -> Text:
    """The last `width` values as a small curve."""
    shown = list(values)[-width:]
    most = max(shown, default=0.0)
    text = "".join(SPARKS[_level(value, most)] for value in shown)
    return Text(text.rjust(width), "#4f9dde", no_wrap=True)


def _level(value: float, most: float) -> int:
    return 0 if most <= 0 else min(len(SPARKS) - 1, int((len(SPARKS) - 1) * value / most + 0.5))


def traffic_lines(rates: Rates, width: int) -> list[Text]:
    """Rates, queues and step times; with a `width`, a small curve below."""
    numbers = Text.assemble(
        (f"{rates.tokens_per_s:6.0f}", palette.MEANINGS["strong"]),
        (" tokens/s   ", palette.MEANINGS["dim"]),
        (f"{rates.running}", palette.MEANINGS["strong"]),
        (" running  ", palette.MEANINGS["dim"]),
        (f"{rates.waiting}", palette.MEANINGS["busy" if rates.waiting else "strong"]),
        (" waiting", palette.MEANINGS["dim"]),
    )
    steps = styled(
        f"step p50 {rates.step_ms_p50:.1f} ms  p99 {rates.step_ms_p99:.1f} ms  "
        f"KV {100 * rates.kv_share:.0f}% full",
        "dim",
    )
    return [numbers, steps, *([spark(rates.history, width)] if width > 0 else [])]
