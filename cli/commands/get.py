"""`moectl get`: list things of the fleet."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..render import Listing

KINDS_HELP = "nodes, models, workers, transitions, events or pages"


def complete_kind(incomplete: str) -> list[str]:
    """Kinds for shell completion."""
    kinds = ("nodes", "models", "workers", "transitions", "events", "pages")
    return [kind for kind in kinds if kind.startswith(incomplete)]


def get(
    kind: Annotated[str, typer.Argument(help=KINDS_HELP, autocompletion=complete_kind)],
    name: Annotated[str | None, typer.Argument(help="Only the one of this name.")] = None,
    output: Annotated[
        str, typer.Option("-o", "--output", help="table, json, yaml or name.")
    ] = "table",
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Then print every change until interrupted.")
    ] = False,
) -> None:
    """List nodes, models, workers, transitions, events or memory pages.

    \b
    Examples:
      moectl get models
      moectl get nodes -o json
      moectl get transitions --watch
      moectl get pages n1/d0
    """
    from ..instance import connect
    from ..listings import kind_of, listing_of
    from ..render import check_format, print_listing

    wanted, shown_as = kind_of(kind), check_format(output)
    with connect() as client:
        if not watch:
            print_listing(listing_of(client.fleet(), wanted, name), shown_as)
            return
        seen: dict[str, str] = {}
        for fleet in client.watch():
            changed = _changed(listing_of(fleet, wanted, name), seen)
            if changed.rows:
                print_listing(changed, shown_as)


def _changed(listing: "Listing", seen: dict[str, str]) -> "Listing":
    """The rows whose text is new; ages alone are no change."""
    from ..render import Listing

    fresh = []
    for row in listing.rows:
        key = listing.name_of(row)
        text = repr([c.text(row) for c in listing.columns if c.title != "AGE"])
        if seen.get(key) != text:
            seen[key] = text
            fresh.append(row)
    return Listing(listing.kind, fresh, listing.columns, listing.name_of)
