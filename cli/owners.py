"""Whose is each field of a model's spec? A table of paths, values and owners."""

from ..core.errors import UsageError
from ..core.fields import leaf
from .instance import connect
from .render import Column, Listing, Row, print_listing


def print_owners(kind: str, name: str | None, output: str) -> None:
    """Print every leaf of the declared models, or of one."""
    if kind != "models":
        raise UsageError("--show-owner is for models", next_step="`moectl get models --show-owner`")
    with connect() as client:
        names = [name] if name else [item["name"] for item in client.get("specs/Model")]
        documents = [client.get(f"specs/Model/{one}") for one in names]
    rows: list[Row] = [
        {"model": document["name"], "field": path, "value": leaf(document["spec"], path), **note}
        for document in documents
        for path, note in sorted(document["fields"].items())
    ]
    columns = (
        Column("MODEL", lambda row: str(row["model"])),
        Column("FIELD", lambda row: str(row["field"])),
        Column("VALUE", lambda row: "-" if row["value"] is None else str(row["value"])),
        Column("OWNER", lambda row: str(row["owner"])),
        Column("GENERATION", lambda row: str(row["generation"]), right=True),
        Column("TAKEN FROM", lambda row: str(row["before"] or "-")),
    )
    print_listing(
        Listing("field", rows, columns, lambda row: f"{row['model']}/{row['field']}"), output
    )
