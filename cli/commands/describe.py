"""`moectl describe`: everything about one thing of the fleet."""

from typing import Annotated, Any

import typer

KINDS = ("device", "model", "node", "worker", "transition")


def describe(
    kind: Annotated[str, typer.Argument(help="model, node, worker, transition or device.")],
    name: Annotated[str, typer.Argument(help="Its name; of a device NODE/DEVICE.")],
    output: Annotated[str, typer.Option("-o", "--output", help="table, json or yaml.")] = "table",
) -> None:
    """Show one thing whole: a model in five layers, a change with its phases, a device by pages.

    \b
    Examples:
      moectl describe model chat
      moectl describe transition scale-1a2b3c
      moectl describe worker chat/n1/d0
      moectl describe device n1/d0
      moectl describe device n1/d0 -o json
    """
    from ...core.errors import UsageError
    from ..instance import connect
    from ..render import print_data

    if kind in KINDS[1:]:
        from ..describing import show

        show(kind, name, output)
        return
    node, _, device = name.partition("/")
    if kind not in KINDS or not node or not device or "/" in device:
        raise UsageError(
            f"describe {kind} {name}: not known",
            next_step=f"use one of: {', '.join(KINDS)}; a device is named NODE/DEVICE",
        )
    with connect() as client:
        told = client.get(f"nodes/{node}/devices/{device}/pages")
    if output == "table":
        _print_table(told)
    else:
        print_data(told, output)


def _print_table(told: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from ...core.units import format_bytes

    page = int(told["page_bytes"])
    table = Table("PAGES", "SIZE", "OWNER", "HOLDS", box=None, pad_edge=False)
    for first, count, owner, what in told["spans"]:
        last = first + count - 1
        pages = str(first) if count == 1 else f"{first}-{last}"
        table.add_row(pages, format_bytes(count * page), owner or "-", what)
    console = Console()
    console.print(
        f"{told['node']}/{told['device']}: pages of {format_bytes(page)}, "
        f"{told['reserved']} reserved",
        highlight=False,
    )
    console.print(table)
