"""`moectl doctor`: can this machine run moectl, and is anything left over?"""

from typing import Annotated

import typer


def doctor(
    output: Annotated[str, typer.Option("-o", "--output", help="text, json or yaml.")] = "text",
) -> None:
    """Check this machine: versions, etcd, ports, memory pages, limits, leftovers.

    Exits 1 when something will not work; warnings do not count.

    \b
    Examples:
      moectl doctor
      moectl doctor -o json
    """
    from ...core.errors import UsageError
    from ...core.paths import Home
    from ...core.records import to_plain
    from ..checkup import run_checks
    from ..render import print_data

    if output not in ("text", "json", "yaml"):
        raise UsageError(f"-o {output}: not a format", next_step="use text, json or yaml")
    checks = run_checks(Home.from_environment())
    if output == "text":
        marks = {"ok": "✓", "warn": "!", "fail": "✗"}
        for check in checks:
            print(f"{marks[check.outcome]} {check.name:12} {check.detail}")
            if check.fix:
                print(f"  {'':12} {check.fix}")
    else:
        print_data([to_plain(check) for check in checks], output)
    if any(check.outcome == "fail" for check in checks):
        raise typer.Exit(1)
