"""`moectl context`: which fleet commands talk to."""

from typing import Annotated

import typer

from ..completing import complete_context

NAME_HELP = "Name of the context; `local` is this home's own fleet."
Name = Annotated[str, typer.Argument(help=NAME_HELP, autocompletion=complete_context)]


def build_app() -> typer.Typer:
    """The commands of `moectl context`."""
    app = typer.Typer(help="Choose the fleet that commands talk to.", no_args_is_help=True)
    app.command("list")(list_contexts)
    app.command("use")(use)
    app.command("add")(add)
    app.command("remove")(remove)
    return app


def list_contexts(
    output: Annotated[str, typer.Option("-o", "--output", help="table, json, yaml or name.")] = (
        "table"
    ),
) -> None:
    """List contexts; the star marks the one in force.

    \b
    Examples:
      moectl context list
      moectl context list -o json
    """
    from ...core.paths import Home
    from ..contexts import LOCAL, load, name_in_force
    from ..render import Column, Listing, check_format, print_listing

    home = Home.from_environment()
    contexts, in_force = load(home), name_in_force(home)
    rows = [{"name": LOCAL, "api": "(the fleet of this home)", "token_file": "", "ca_file": ""}]
    rows += [
        {"name": n, "api": c.api, "token_file": c.token_file, "ca_file": c.ca_file}
        for n, c in sorted(contexts.known.items())
    ]
    for row in rows:
        row["current"] = "*" if row["name"] == in_force else ""
    columns = (
        Column("", lambda row: str(row["current"])),
        Column("NAME", lambda row: str(row["name"])),
        Column("API", lambda row: str(row["api"])),
        Column("TOKEN FILE", lambda row: str(row["token_file"] or "-")),
    )
    listing = Listing("context", rows, columns, lambda row: str(row["name"]))
    print_listing(listing, check_format(output))


def use(name: Name) -> None:
    """Talk to this fleet from now on.

    `--context NAME` on any command, or MOECTL_CONTEXT, chooses for one command.

    \b
    Examples:
      moectl context use prod
      moectl context use local
    """
    from ...core.errors import UsageError
    from ...core.paths import Home
    from ..contexts import LOCAL, Contexts, load, save

    home = Home.from_environment()
    contexts = load(home)
    if name != LOCAL and name not in contexts.known:
        names = ", ".join([LOCAL, *sorted(contexts.known)])
        raise UsageError(f"no context named {name!r}", next_step=f"use one of: {names}")
    save(home, Contexts(name, contexts.known))
    print(f"context {name}")


def add(
    name: Name,
    api: Annotated[str, typer.Option(help="URL of the controller, https://HOST:PORT.")],
    token_file: Annotated[str, typer.Option(help="File with the token; readable by you alone.")],
    ca_file: Annotated[str, typer.Option(help="PEM of the authority of the API.")] = "",
    gateway: Annotated[
        str, typer.Option(help="URL of the front door; by default the one that the fleet names.")
    ] = "",
) -> None:
    """Add or change a context.

    \b
    Examples:
      moectl context add prod --api https://moe.example:8470 --token-file ~/.prod-token
      moectl context add prod --api https://10.0.0.7:8470 --token-file ~/.t --ca-file ~/ca.pem
    """
    from pathlib import Path

    from ...core.errors import UsageError
    from ...core.paths import Home
    from ..client import trust_of
    from ..contexts import Context, Contexts, check_name, load, save

    check_name(name)
    for option, url in (("--api", api), ("--gateway", gateway or api)):
        if not url.startswith(("https://", "http://")):
            raise UsageError(f"{option} {url}: not a URL", next_step="write https://HOST:PORT")
    home = Home.from_environment()
    contexts = load(home)
    token, ca = (str(Path(f).expanduser().resolve()) if f else "" for f in (token_file, ca_file))
    if ca:
        trust_of(ca)
    context = Context(api.rstrip("/"), token, ca, gateway.rstrip("/"))
    save(home, Contexts(contexts.current, contexts.known | {name: context}))
    print(f"context {name} added; `moectl context use {name}` makes it the one in force")


def remove(name: Name) -> None:
    """Forget a context; the fleet is not touched.

    \b
    Examples:
      moectl context remove prod
    """
    from ...core.errors import UsageError
    from ...core.paths import Home
    from ..contexts import LOCAL, Contexts, load, save

    home = Home.from_environment()
    contexts = load(home)
    if name not in contexts.known:
        raise UsageError(f"no context named {name!r}")
    known = {key: value for key, value in contexts.known.items() if key != name}
    save(home, Contexts(LOCAL if contexts.current == name else contexts.current, known))
    print(f"context {name} removed")
