"""`moectl describe`: everything about one thing of the fleet."""

from typing import Annotated, Any

import typer

from ..completing import one_of

KINDS = ("device", "memory", "model", "node", "worker", "transition")


def describe(
    kind: Annotated[
        str,
        typer.Argument(
            help="model, memory, node, worker, transition or device.",
            autocompletion=one_of("model", "memory", "node", "worker", "transition", "device"),
        ),
    ],
    name: Annotated[str, typer.Argument(help="Its name; of memory a model, of a device NODE/DEV.")],
    output: Annotated[str, typer.Option("-o", "--output", help="table, json or yaml.")] = "table",
) -> None:
    """Show one thing whole: a model in five layers, a change with its phases, a device by pages.

    `memory` compares what the planner says that a worker holds with what the workers of a model
    really hold, term by term: pages, exchange regions, and what each process has for itself.

    \b
    Examples:
      moectl describe model chat
      moectl describe memory chat
      moectl describe transition scale-1a2b3c
      moectl describe worker chat/n1/d0
      moectl describe device n1/d0
      moectl describe device n1/d0 -o json
    """
    from ...core.errors import UsageError
    from ..instance import connect
    from ..render import print_data

    if kind == "memory":
        _memory(name, output)
        return
    if kind in KINDS[2:]:
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


def _memory(model: str, output: str) -> None:
    """The memory model beside real pages and processes."""
    from ...core.errors import UsageError
    from ..instance import connect
    from ..memory_check import check_model, table_lines
    from ..render import print_data

    if output not in ("table", "json", "yaml"):
        raise UsageError(f"-o {output}: not a format", next_step="use table, json or yaml")
    with connect() as client:
        check = check_model(client, model)
    if output == "table":
        print("\n".join(table_lines(check)))
    else:
        print_data(check, output)


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
    console.print(_headline(told, page), highlight=False)
    if told.get("claims"):
        console.print(_budget(told, page), "")
    console.print(table)


def _headline(told: dict[str, Any], page: int) -> str:
    from ...core.units import format_bytes

    words = [f"{told['node']}/{told['device']}: pages of {format_bytes(page)}"]
    if "total" in told:
        words.append(f"{told['free']} of {told['total']} free")
    words.append(f"{told['reserved']} reserved")
    if told.get("touched", -1) >= 0:
        words.append(f"{told['touched']} touched (ahead: {told['pretouch']})")
    return ", ".join(words)


def _budget(told: dict[str, Any], page: int) -> Any:
    """Who may count on how much of the device, and who holds more than that."""
    from rich.table import Table

    from ...core.units import format_bytes

    table = Table("BUDGET", box=None, pad_edge=False)
    for heading in ("GUARANTEED", "WEIGHT", "HOLDS", "ABOVE"):
        table.add_column(heading, justify="right")
    for party, guarantee, weight, used in told["claims"]:
        sizes = [format_bytes(int(pages) * page) for pages in (guarantee, used)]
        above = format_bytes((used - guarantee) * page) if used > guarantee else "-"
        table.add_row(party, sizes[0], f"{weight:g}", sizes[1], above)
    return table
