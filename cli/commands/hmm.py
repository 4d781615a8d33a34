"""`moectl hmm`: run a node's HBM manager alone, or take over from the one that runs."""

from typing import Annotated

import typer

DEVICE_HELP = "ID=HBM/PAGE[/KIND], such as d0=96MiB/16KiB or d0=64GiB/2MiB/cuda. Repeatable."


def hmm(
    socket: Annotated[str, typer.Option(help="Unix socket, in a directory of your own (0700).")],
    device: Annotated[list[str], typer.Option(help=DEVICE_HELP)],
    node: Annotated[str, typer.Option(help="Name of the node.")] = "local",
    pretouch: Annotated[
        bool,
        typer.Option("--pretouch", help="Give free pages their memory ahead, in the background."),
    ] = False,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over", help="Get everything from the HMM that serves now: an upgrade."
        ),
    ] = False,
) -> None:
    """Run the HBM manager of a node alone, until it is ended.

    A fleet starts its own. Its clients keep their connections when another one takes over; killed,
    its successor gets the memory back from the workers that still use it.

    \b
    Examples:
      moectl hmm --socket ~/hmm/hmm.sock --device d0=1GiB/2MiB --pretouch
      moectl hmm --socket ~/hmm/hmm.sock --device d0=1GiB/2MiB --take-over
    """
    import json

    from ...memory.hmm.server import main

    limit = -1 if pretouch else 0  # all free pages, or none
    devices = [_device(text) | {"pretouch_bytes": limit} for text in device]
    argv = ["--socket", socket, "--node", node, "--devices", json.dumps(devices)]
    raise typer.Exit(main([*argv, "--take-over"] if take_over else argv))


def _device(text: str) -> dict[str, object]:
    from ...core.errors import UsageError
    from ...core.units import parse_bytes

    name, _, rest = text.partition("=")
    parts = rest.split("/")
    try:
        if not name or len(parts) not in (2, 3):
            raise ValueError("it has not the form ID=HBM/PAGE or ID=HBM/PAGE/KIND")
        sizes = {"hbm_bytes": parse_bytes(parts[0]), "page_bytes": parse_bytes(parts[1])}
    except ValueError as error:
        raise UsageError(
            f"--device {text}: {error}", next_step="for example --device d0=96MiB/16KiB"
        ) from error
    return {"id": name, **sizes, "kind": parts[2] if len(parts) == 3 else "cpu"}
