"""What does a replica look like? Devices across, layers down, experts inside.

One box a device, a row of boxes a node, one band a pipeline stage; inside, which attention heads
and which experts the device holds, as words and as bars over all heads and all experts. The picture
is a list of rectangles and texts; `svg` writes it out, and whoever has a plotting library draws it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from .layouts import Layout
from .model_facts import ModelShape

CELL_W, CELL_H, GAP = 134, 92, 8
LEFT, TOP, BOTTOM = 96, 62, 42
DEVICES_MAX = 64  # of one stage that are drawn; the rest is alike and counted
INK, MUTED, LINE, TRACK = "#1f2933", "#5b6672", "#9aa7b4", "#ffffff"
HEADS, EXPERTS = "#3f7cac", "#d1873c"
STAGES = ("#e3eefa", "#e6f4e8", "#fbf1dc", "#f6e6f0", "#eae7f8", "#ecf1ec")


@dataclass(frozen=True, slots=True)
class Mark:
    """A rectangle, or (with `text`) words that begin at x on the line y. Pixels, y downwards."""

    x: float
    y: float
    fill: str
    width: float = 0.0
    height: float = 0.0
    text: str = ""
    size: int = 11
    is_bold: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing; later marks lie over earlier ones."""

    width: int
    height: int
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class _Grid:
    """How the devices of a stage are laid out: rows of a node's devices."""

    columns: int
    rows: int
    shown: int

    @property
    def height(self) -> int:
        """Pixels of one stage's band."""
        return self.rows * CELL_H + GAP


def picture(shape: ModelShape, layout: Layout, title: str, node_devices: int = 8) -> Picture:
    """The drawing of one replica in nodes of so many devices."""
    shown = min(layout.stage_devices, DEVICES_MAX)
    columns = min(shown, max(1, node_devices))
    grid = _Grid(columns, -(-shown // columns), shown)
    width = max(LEFT + columns * CELL_W + 16, 24 + 7 * max(len(title), 80))
    height = TOP + layout.pp * grid.height + BOTTOM
    marks = [
        Mark(0, 0, "#ffffff", width, height),
        Mark(12, 24, INK, text=title, size=14, is_bold=True),
        Mark(12, 44, MUTED, text=_caption(shape, layout)),
    ]
    first = 0
    for stage in range(layout.pp):
        layers = _layers_of(shape.layers, layout.pp, stage)
        marks += _band(shape, layout, grid, stage, (first, layers))
        first += layers
    return Picture(width, height, (*marks, *_legend(shape, layout, grid, height)))


def _layers_of(layers: int, stages: int, stage: int) -> int:
    share, rest = divmod(layers, stages)
    return share + (stage < rest)


def _caption(shape: ModelShape, layout: Layout) -> str:
    kinds = f"{shape.layers} layers, {shape.heads} heads"
    if shape.is_moe:
        kinds += f", {shape.experts} experts in each of {shape.moe_layers} layers"
    return f"{kinds}; {layout} on {layout.devices} devices"


def _legend(shape: ModelShape, layout: Layout, grid: _Grid, height: int) -> Iterator[Mark]:
    y = height - 16
    yield Mark(12, y - 7, HEADS, 22, 6)
    yield Mark(40, y, MUTED, text="attention heads held, of all")
    if shape.is_moe:
        yield Mark(222, y - 7, EXPERTS, 22, 6)
        yield Mark(250, y, MUTED, text="experts held, of all; paler: a slice of each")
    hidden = layout.stage_devices - grid.shown
    if hidden:
        yield Mark(530, y, INK, text=f"and {hidden} more devices a stage, alike")


def _band(
    shape: ModelShape, layout: Layout, grid: _Grid, stage: int, span: tuple[int, int]
) -> Iterator[Mark]:
    """One pipeline stage: its words on the left, its devices in rows."""
    first, layers = span
    y = TOP + stage * grid.height
    label = f"stage {stage}" if layout.pp > 1 else "one stage"
    yield Mark(12, y + 20, INK, text=label, is_bold=True)
    yield Mark(12, y + 36, MUTED, text=f"layers {first}-{first + layers - 1}", size=10)
    for number in range(grid.shown):
        row, column = divmod(number, grid.columns)
        if column == 0 and grid.rows > 1:
            yield Mark(12, y + row * CELL_H + 58, MUTED, text=f"node {row}", size=10)
        at = (LEFT + column * CELL_W, y + row * CELL_H)
        yield from _cell(shape, layout, stage, number, at)


def _cell(
    shape: ModelShape, layout: Layout, stage: int, number: int, at: tuple[int, int]
) -> Iterator[Mark]:
    """One device: its number, the heads and experts it holds, and bars for both."""
    x, y = at
    wide, inner = CELL_W - GAP, CELL_W - GAP - 18
    yield Mark(x, y, LINE, wide, CELL_H - GAP)
    yield Mark(x + 1, y + 1, STAGES[stage % len(STAGES)], wide - 2, CELL_H - GAP - 2)
    device = stage * layout.stage_devices + number
    yield Mark(x + 9, y + 17, INK, text=f"d{device}", is_bold=True)
    if layout.dp > 1:
        yield Mark(x + 44, y + 17, MUTED, text=f"copy {number // layout.tp % layout.dp}", size=10)
    heads = shape.heads // layout.tp
    tensor = number % layout.tp
    yield Mark(x + 9, y + 33, INK, text=f"heads {_span(tensor * heads, heads)}", size=10)
    yield from _bar((x + 9, y + 38), inner, (tensor / layout.tp, 1 / layout.tp), HEADS)
    if not shape.is_moe:
        return
    each, group = shape.experts // layout.ep, number // layout.etp
    text = f"experts {_span(group * each, each)}"
    if layout.etp > 1:
        text += f" (1/{layout.etp})"
    yield Mark(x + 9, y + 61, INK, text=text, size=10)
    color = EXPERTS if layout.etp == 1 else "#ecc799"
    yield from _bar((x + 9, y + 66), inner, (group / layout.ep, 1 / layout.ep), color)


def _span(first: int, count: int) -> str:
    return f"{first}-{first + count - 1}" if count > 1 else str(first)


def _bar(
    at: tuple[float, float], width: float, part: tuple[float, float], color: str
) -> Iterator[Mark]:
    yield Mark(*at, TRACK, width, 6)
    yield Mark(at[0] + width * part[0], at[1], color, max(2.0, width * part[1]), 6)


def svg(shape: ModelShape, layout: Layout, title: str, node_devices: int = 8) -> str:
    """The drawing of one replica as an SVG."""
    drawn = picture(shape, layout, title, node_devices)
    size = f'width="{drawn.width}" height="{drawn.height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {drawn.width}'
        f' {drawn.height}" font-family="sans-serif">',
        *map(_element, drawn.marks),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _element(mark: Mark) -> str:
    if mark.text:
        weight = ' font-weight="bold"' if mark.is_bold else ""
        return (
            f'<text x="{mark.x:g}" y="{mark.y:g}" font-size="{mark.size}"{weight}'
            f' fill="{mark.fill}">{escape(mark.text)}</text>'
        )
    return (
        f'<rect x="{mark.x:.1f}" y="{mark.y:.1f}" width="{mark.width:.1f}"'
        f' height="{mark.height:.1f}" fill="{mark.fill}"/>'
    )
