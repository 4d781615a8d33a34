"""`moectl diff`: what would `moectl apply` change?"""

from typing import Annotated, Any

import typer


def diff(
    file: Annotated[str, typer.Option("--file", "-f", help="YAML file or folder, or - for stdin.")],
    output: Annotated[str, typer.Option("-o", "--output", help="text, json or yaml.")] = "text",
) -> None:
    """Compare files with what is declared, field by field, with the owner of each.

    Exits 0 when they are the same, 1 when they differ, above 1 on an error.

    \b
    Examples:
      moectl diff -f clusters/local.yaml
    """
    from ...core.errors import MoectlError, UsageError

    try:
        changes = _changes(file)
    except MoectlError as error:
        if error.exit_code == 1:  # 1 means "different" here
            raise UsageError(error.message, next_step=error.next_step) from error
        raise
    if output == "text":
        for change in changes:
            old, new, owner = change["declared"], change["file"], change["owner"]
            about = f"  (owner {owner})" if owner else ""
            print(f"{change['object']} {change['field']}: {old!r} -> {new!r}{about}")
    else:
        from ..render import print_data

        print_data(changes, output)
    raise typer.Exit(1 if changes else 0)


def _changes(file: str) -> list[dict[str, Any]]:
    from .. import specs
    from ..instance import connect

    requests = specs.to_request(specs.read_documents(file), specs.folder_of(file))
    found: list[dict[str, Any]] = []
    with connect() as client:
        for request in requests:
            declared = {item["name"]: item for item in client.get(f"specs/{request['kind']}")}
            found += compare(request, declared.get(request["name"]))
    return found


def compare(wanted: dict[str, Any], declared: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The differing leaves of one document; pure. A document that is not declared differs whole."""
    from ...core.fields import changed_leaves, leaves

    name = f"{wanted['kind'].lower()}/{wanted['name']}"
    old = declared["spec"] if declared else {}
    notes = (declared or {}).get("fields") or {}
    before, after = dict(leaves(old)), dict(leaves(wanted["spec"]))
    return [
        {
            "object": name,
            "field": path,
            "declared": before.get(path),
            "file": after.get(path),
            "owner": notes.get(path, {}).get("owner", ""),
        }
        for path in changed_leaves(old, wanted["spec"])
    ]
