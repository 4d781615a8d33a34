"""How does a drawing become a file? SVG as text; PNG through matplotlib. By the file's ending."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import RefusedError, UsageError

if TYPE_CHECKING:
    from ..placement.draw import Picture

DOTS_PER_INCH = 160
POINTS_PER_PIXEL = 0.72  # at a hundred pixels an inch


def write_drawing(file: Path, picture: "Picture", svg: str) -> None:
    """Write a layout's drawing.

    Raises UsageError on another ending than .svg and .png, RefusedError when it cannot be written.
    """
    if file.suffix not in (".svg", ".png"):
        raise UsageError(f"--draw {file}: not a picture", next_step="end it in .svg or .png")
    try:
        if file.suffix == ".svg":
            file.write_text(svg, encoding="utf-8")
        else:
            _write_png(file, picture)
    except OSError as error:
        raise RefusedError(
            f"--draw {file}: {error.strerror}", next_step="name a file in a folder that is there"
        ) from error


def _write_png(file: Path, picture: "Picture") -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(picture.width / 100, picture.height / 100))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, picture.width)
    axes.set_ylim(picture.height, 0)
    axes.axis("off")
    for order, mark in enumerate(picture.marks):
        if mark.text:
            axes.text(
                mark.x,
                mark.y,
                mark.text,
                fontsize=mark.size * POINTS_PER_PIXEL,
                color=mark.fill,
                fontweight="bold" if mark.is_bold else "normal",
                zorder=order,
                parse_math=False,
            )
        else:
            corner = (mark.x, mark.y)
            size = (mark.width, mark.height)
            axes.add_patch(Rectangle(corner, *size, color=mark.fill, lw=0, zorder=order))
    figure.savefig(file, dpi=DOTS_PER_INCH)
