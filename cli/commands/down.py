"""`moectl down`: end the embedded fleet and remove what it left."""

from typing import Annotated

import typer

from ...core.errors import MoectlError


def down(
    keep_logs: Annotated[bool, typer.Option("--keep-logs", help="Keep the log files.")] = False,
) -> None:
    """End every process of this machine's fleet and remove its state.

    Processes are ended by their id, the gateway first and etcd last. Harmless when nothing runs.

    \b
    Examples:
      moectl down
      moectl down --keep-logs
      MOECTL_HOME=/tmp/second moectl down
    """
    from ...core.paths import Home
    from ..home_lock import home_lock
    from ..interrupts import shielded
    from ..progress import open_progress
    from ..teardown import tear_down

    home = Home.from_environment()
    if not home.root.exists():
        print(f"nothing runs here ({home.root})")
        return
    with home_lock(home), open_progress() as progress, shielded():

        def tell(role: str, outcome: str) -> None:
            if outcome == "run":
                progress.start(role)
            else:
                progress.end(role, outcome, "ended" if outcome == "ok" else "cannot be ended")

        result = tear_down(home, keep_logs=keep_logs, report=tell)
    if result.survivors:
        pids = ", ".join(str(pid) for pid in result.survivors)
        raise MoectlError(
            f"processes {pids} cannot be ended", next_step="end them as the user that owns them"
        )
    if not result.was_running and not result.ended and not result.leftovers:
        print(f"nothing runs here ({home.root})")
        return
    extra = f" and {result.leftovers} leftover processes" if result.leftovers else ""
    print(f"fleet is down: {len(result.ended)} parts{extra} ended")
    if keep_logs:
        print(f"logs are kept in {home.logs_dir}")
