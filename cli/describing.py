"""How is one thing shown? As lines for people, or as the API's own JSON for programs."""

from .descriptions import describe_lines
from .instance import connect
from .listings import kind_of, listing_of
from .render import check_format, print_data
from .staleness import warn_if_stale


def show(kind: str, name: str, output: str) -> None:
    """Print a model, node, worker or transition."""
    shown_as = check_format(output)
    with connect() as client:
        fleet = client.fleet()
    warn_if_stale(fleet)
    if shown_as in ("table", "wide"):
        print("\n".join(describe_lines(fleet, kind, name)))
    else:
        (row,) = listing_of(fleet, kind_of(kind), name).rows
        print_data(dict(row), shown_as)
