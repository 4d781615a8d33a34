"""`moectl status`: is everything well? The parts of the embedded fleet, its nodes, models and
changes.
"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...core.errors import MoectlError

if TYPE_CHECKING:
    from ...core.paths import Home
    from ..contexts import Context
    from ..fleet_view import FleetView
    from ..instance import Instance


def status(
    output: Annotated[str, typer.Option("-o", "--output", help="table, json or yaml.")] = "table",
) -> None:
    """Show the parts of this machine's fleet, its nodes, its models and running changes.

    Works while the controller is away: then it says what is known from this machine alone.
    With --context it shows the nodes and models of another fleet, whose parts run elsewhere.
    Exits 1 when a part is down, a node is missing or a model is not ready.

    \b
    Examples:
      moectl status
      moectl status -o json
      moectl status --context prod
    """
    from ...core.paths import Home
    from ..contexts import chosen
    from ..instance import require_instance
    from ..render import check_format, print_data

    home = Home.from_environment()
    context = chosen(home)
    instance = None if context else require_instance(home)
    check_format(output)
    parts = _parts(home, instance) if instance else []
    fleet, problem = _look(home)
    about = _about(context, instance, fleet)
    if output == "table":
        print("  ".join(f"{name} {value}" for name, value in about.items()) + "\n")
        if parts:
            _print_parts(parts)
        _print_fleet(fleet, problem)
    else:
        print_data(about | _plain(parts, fleet, problem), output)
    if problem or any(part["state"] != "running" for part in parts):
        raise typer.Exit(1)
    if fleet and not all(model.is_whole for model in fleet.models):
        raise typer.Exit(1)


def _about(
    context: "Context | None", instance: "Instance | None", fleet: "FleetView | None"
) -> dict[str, str]:
    """Which fleet this is and where it is reached."""
    if instance is not None:
        gateway = f"{instance.gateway_url}/v1"
        return {"cluster": instance.cluster, "api": instance.api_url, "gateway": gateway}
    assert context is not None
    gateway = context.gateway or (fleet.endpoints.get("gateway", "") if fleet else "")
    cluster = fleet.cluster if fleet else "unknown"
    return {"cluster": cluster, "api": context.api, "gateway": gateway or "unknown"}


def _parts(home: "Home", instance: "Instance") -> list[dict[str, Any]]:
    """Every expected role with its process; a role without a live process is down."""
    from ..launch import running_process

    roles = ["etcd", "controller", "gateway", *(f"agent-{n['name']}" for n in instance.nodes)]
    found = []
    for role in roles:
        process = running_process(home, role)
        found.append(
            {
                "role": role,
                "state": "running" if process else "down",
                "pid": process.pid if process else None,
                "log": str(home.log_file(role)),
            }
        )
    return found


def _look(home: "Home") -> "tuple[FleetView | None, str]":
    from ..fleet_view import fleet_from_plain
    from ..instance import connect
    from ..listings import format_age
    from ..staleness import last_known, remember, stale_text

    try:
        with connect(home) as client:
            plain = client.get("fleet")
    except MoectlError as error:
        kept = last_known(home)
        if kept is None:
            return None, error.message
        return kept[0], f"{error.message}\nshown as last seen, {format_age(kept[1])} ago"
    remember(home, plain)
    fleet = fleet_from_plain(plain)
    return fleet, stale_text(fleet)


def _print_parts(parts: list[dict[str, Any]]) -> None:
    from ..render import Column, Listing, print_listing

    columns = (
        Column("PART", lambda row: str(row["role"])),
        Column("STATE", lambda row: str(row["state"])),
        Column("PID", lambda row: str(row["pid"] or "-"), right=True),
        Column("LOG", lambda row: str(row["log"])),
    )
    print_listing(Listing("part", parts, columns, lambda row: str(row["role"])), "table")


def _print_fleet(fleet: "FleetView | None", problem: str) -> None:
    from ..listings import models, nodes, transitions
    from ..render import Listing, print_listing

    if fleet is None:
        print(f"\nnodes and models are unknown: {problem}")
        return
    if problem:
        print(f"\n{problem}")
    print()
    print_listing(nodes(fleet), "table")
    if fleet.missing_nodes:
        print(f"not alive: {', '.join(fleet.missing_nodes)}")
    print()
    print_listing(models(fleet), "table")
    listing = transitions(fleet)
    running = [row for row in listing.rows if row["phase"] not in ("done", "forfeited")]
    if running:
        print()
        print_listing(Listing(listing.kind, running, listing.columns, listing.name_of), "table")


def _plain(parts: list[dict[str, Any]], fleet: "FleetView | None", problem: str) -> dict[str, Any]:
    from ..listings import models, nodes, transitions

    return {
        "parts": parts,
        "problem": problem,
        "nodes": list(nodes(fleet).rows) if fleet else None,
        "models": list(models(fleet).rows) if fleet else None,
        "transitions": list(transitions(fleet).rows) if fleet else None,
    }
