"""`moectl token`: who may talk to the fleet."""

import sys
from typing import Annotated

import typer

from ..completing import complete_token, one_of


def build_app() -> typer.Typer:
    """The commands of `moectl token`."""
    app = typer.Typer(help="Make, list and revoke tokens of the API.", no_args_is_help=True)
    app.command("create")(create)
    app.command("list")(list_tokens)
    app.command("revoke")(revoke)
    return app


def create(
    name: Annotated[str, typer.Argument(help="Name that people will know it by.")],
    role: Annotated[
        str,
        typer.Option(
            help="viewer, operator or admin.", autocompletion=one_of("viewer", "operator", "admin")
        ),
    ] = "viewer",
    tenant: Annotated[str, typer.Option(help="Whose models it is for.")] = "default",
    file: Annotated[str, typer.Option(help="Write the token here (0600), not to stdout.")] = "",
) -> None:
    """Make a token. It is shown once; the fleet keeps only its digest.

    \b
    Examples:
      moectl token create ci --role operator --file ~/.ci-token
    """
    from pathlib import Path

    from ...core.paths import write_private
    from ..instance import connect

    with connect() as client:
        made = client.post("tokens", {"name": name, "role": role, "tenant": tenant})
    if file:
        write_private(Path(file).expanduser(), made["token"] + "\n")
        print(f"token {name} ({role}, tenant {tenant}) written to {file}", file=sys.stderr)
    else:
        print(f"token {name} ({role}, tenant {tenant}); it is shown this once", file=sys.stderr)
        print(made["token"])


def list_tokens(
    output: Annotated[str, typer.Option("-o", "--output", help="table, json, yaml or name.")] = (
        "table"
    ),
) -> None:
    """List tokens by name; their texts are known to nobody but their holders.

    \b
    Examples:
      moectl token list
    """
    from datetime import UTC, datetime

    from ..instance import connect
    from ..render import Column, Listing, check_format, print_listing

    shown_as = check_format(output)
    with connect() as client:
        rows = client.get("tokens")
    columns = (
        Column("NAME", lambda row: str(row["name"])),
        Column("ROLE", lambda row: str(row["role"])),
        Column("TENANT", lambda row: str(row["tenant"])),
        Column("ID", lambda row: str(row["id"])),
        Column(
            "CREATED",
            lambda row: f"{datetime.fromtimestamp(row['created_at'], UTC):%Y-%m-%d %H:%M}",
        ),
    )
    print_listing(Listing("token", rows, columns, lambda row: str(row["name"])), shown_as)


def revoke(
    name: Annotated[str, typer.Argument(help="Name of the token.", autocompletion=complete_token)],
) -> None:
    """Revoke a token; whoever holds it is refused at once. The last admin token stays.

    \b
    Examples:
      moectl token revoke ci
    """
    from ..instance import connect

    with connect() as client:
        client.delete(f"tokens/{name}")
    print(f"token {name} revoked")
