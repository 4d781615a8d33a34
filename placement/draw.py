"""What does a replica look like? Devices across, layers down, experts inside, as an SVG.

One column a device, one band a pipeline stage; inside, the share of attention heads, cached key
heads and experts that the device holds. Plain text out, so that it needs no library.
"""

from html import escape

from .layouts import Layout
from .model_facts import ModelShape

CELL_W, CELL_H, LEFT, TOP = 118, 74, 70, 58
COLUMNS_MAX = 64
INK, MUTED = "#1f2933", "#6b7785"
STAGES = ("#dcebfa", "#e3f5e5", "#fdf0d5", "#f6e2ef", "#e7e3f8", "#e9efe9")


def svg(shape: ModelShape, layout: Layout, title: str) -> str:
    """The drawing of one replica."""
    columns = min(layout.stage_devices, COLUMNS_MAX)
    width = LEFT + columns * CELL_W + 16
    height = TOP + layout.pp * CELL_H + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="12" y="22" font-size="14" fill="{INK}">{escape(title)}</text>',
        f'<text x="12" y="40" fill="{MUTED}">{escape(_caption(shape, layout))}</text>',
    ]
    first = 0
    for stage in range(layout.pp):
        layers = _layers_of(shape.layers, layout.pp, stage)
        y = TOP + stage * CELL_H
        span = f"layers {first}-{first + layers - 1}"
        parts.append(f'<text x="12" y="{y + 30}" fill="{INK}">stage {stage}</text>')
        parts.append(f'<text x="12" y="{y + 46}" font-size="9" fill="{MUTED}">{span}</text>')
        parts += [_cell(shape, layout, stage, column, y) for column in range(columns)]
        first += layers
    hidden = layout.stage_devices - columns
    if hidden:
        parts.append(
            f'<text x="12" y="{height - 12}" fill="{MUTED}">and {hidden} more alike</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _layers_of(layers: int, stages: int, stage: int) -> int:
    share, rest = divmod(layers, stages)
    return share + (stage < rest)


def _caption(shape: ModelShape, layout: Layout) -> str:
    kinds = f"{shape.layers} layers, {shape.heads} heads"
    if shape.is_moe:
        kinds += f", {shape.experts} experts in {shape.moe_layers} layers"
    return f"{kinds}; {layout} on {layout.devices} devices"


def _cell(shape: ModelShape, layout: Layout, stage: int, column: int, y: int) -> str:
    x = LEFT + column * CELL_W
    device = stage * layout.stage_devices + column
    tensor = column % layout.tp
    heads = shape.heads // layout.tp
    lines = [f"heads {tensor * heads}-{(tensor + 1) * heads - 1}"]
    if layout.dp > 1:
        lines[0] += f", copy {column // layout.tp % layout.dp}"
    if shape.is_moe:
        each = shape.experts // layout.ep
        group = column // layout.etp
        text = f"experts {group * each}-{(group + 1) * each - 1}"
        lines.append(text if layout.etp == 1 else f"{text} /{layout.etp}")
    bar = (CELL_W - 20) / layout.stage_devices
    marks = "".join(
        f'<text x="{x + 9}" y="{y + 34 + 14 * row}" fill="{INK}">{escape(line)}</text>'
        for row, line in enumerate(lines)
    )
    return (
        f'<rect x="{x}" y="{y}" width="{CELL_W - 6}" height="{CELL_H - 8}" rx="5"'
        f' fill="{STAGES[stage % len(STAGES)]}" stroke="#9aa7b4"/>'
        f'<text x="{x + 9}" y="{y + 17}" font-weight="bold" fill="{INK}">d{device}</text>'
        f'<rect x="{x + 8 + bar * column:.1f}" y="{y + CELL_H - 17}" width="{max(bar, 2):.1f}"'
        f' height="4" fill="#3f7cac"/>{marks}'
    )
