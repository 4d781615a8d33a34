"""How is data printed? As a table for people, as JSON or YAML for programs, as names for shells.

Data goes to stdout and nothing else does. `records` are plain dicts; `columns` pick and name what
the table shows, so that JSON always carries everything.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from ..core.errors import UsageError

FORMATS = ("table", "wide", "json", "yaml", "name")
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its title and the text of a record in it."""

    title: str
    text: Callable[[Row], str]
    right: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """Things of one kind, ready to be printed in any format."""

    kind: str  # singular, as in names: "node", "model"
    rows: Sequence[Row]
    columns: Sequence[Column]
    name_of: Callable[[Row], str]
    more: Sequence[Column] = ()  # columns that only `-o wide` has room for


def check_format(output: str) -> str:
    """The format as given; raises UsageError naming the known ones."""
    if output not in FORMATS:
        raise UsageError(
            f"-o {output}: not a format", next_step=f"use one of: {', '.join(FORMATS)}"
        )
    return output


def print_listing(
    listing: Listing,
    output: str,
    stream: TextIO | None = None,
    widths: list[int] | None = None,
) -> None:
    """Print a listing in a format; `widths` make one table of several listings, as in a watch."""
    out = stream or sys.stdout
    if output == "name":
        for row in listing.rows:
            print(f"{listing.kind}/{listing.name_of(row)}", file=out)
    elif output in ("table", "wide"):
        columns = (*listing.columns, *(listing.more if output == "wide" else ()))
        print_table(Listing(listing.kind, listing.rows, columns, listing.name_of), out, widths)
    else:
        print_data(list(listing.rows), output, out)


def print_data(data: Any, output: str, stream: TextIO | None = None) -> None:
    """Print plain data as JSON or YAML."""
    out = stream or sys.stdout
    if output == "yaml":
        import yaml

        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        print(text, end="", file=out)
    else:
        print(json.dumps(data, indent=2, ensure_ascii=False), file=out)


def print_table(listing: Listing, stream: TextIO, widths: list[int] | None = None) -> None:
    """Columns padded with blanks: stable to read, to pipe and to cut.

    `widths` holds those of the listings before this one, and is set to those used now: the titles
    are printed once, and columns only ever get wider.
    """
    if not listing.rows:
        print(f"no {listing.kind}s", file=sys.stderr)
        return
    cells = [[column.text(row) for column in listing.columns] for row in listing.rows]
    titles = [column.title for column in listing.columns]
    lines = cells if widths else [titles, *cells]
    known = widths or [0] * len(titles)
    used = [max(known[i], *(len(line[i]) for line in lines)) for i in range(len(titles))]
    if widths is not None:
        widths[:] = used
    for line in lines:
        padded = [
            text.rjust(width) if column.right else text.ljust(width)
            for text, width, column in zip(line, used, listing.columns, strict=True)
        ]
        print("  ".join(padded).rstrip(), file=stream)
    stream.flush()
