"""`moectl get`: list things of the fleet."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..render import Listing

KINDS_HELP = "nodes, models, workers, transitions, events, pages or engines"


def complete_kind(incomplete: str) -> list[str]:
    """Kinds for shell completion."""
    kinds = ("nodes", "models", "workers", "transitions", "events", "pages", "engines")
    return [kind for kind in kinds if kind.startswith(incomplete)]


def get(
    kind: Annotated[str, typer.Argument(help=KINDS_HELP, autocompletion=complete_kind)],
    name: Annotated[str | None, typer.Argument(help="Only the one of this name.")] = None,
    output: Annotated[
        str, typer.Option("-o", "--output", help="table, wide, json, yaml or name.")
    ] = "table",
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Then print every change until interrupted.")
    ] = False,
    show_owner: Annotated[
        bool, typer.Option("--show-owner", help="Of models: every field of the spec, and whose.")
    ] = False,
) -> None:
    """List nodes, models, workers, transitions, events, memory pages or engines.

    \b
    Examples:
      moectl get models
      moectl get nodes -o json
      moectl get transitions --watch
      moectl get pages n1/d0
      moectl get engines
      moectl get models chat --show-owner
    """
    from ..instance import connect
    from ..listings import engines, kind_of, listing_of, only
    from ..render import check_format, print_listing
    from ..staleness import warn_if_stale

    wanted, shown_as = kind_of(kind), check_format(output)
    if wanted == "engines":  # what this version can do: no fleet has to run
        print_listing(only(engines(), name), shown_as)
        return
    if show_owner:
        from ..owners import print_owners

        print_owners(wanted, name, shown_as)
        return
    with connect() as client:
        if not watch:
            fleet = client.fleet()
            warn_if_stale(fleet)
            print_listing(listing_of(fleet, wanted, name), shown_as)
            return
        seen: dict[str, str] = {}
        widths: list[int] = []
        for fleet in client.watch():
            changed = _changed(listing_of(fleet, wanted, name), seen)
            if changed.rows:
                print_listing(changed, shown_as, widths=widths)


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
