"""`moectl scale`: spread a model's experts over another number of devices, while it serves."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...core.plan import Pace
from ..completing import complete_model
from ..dry_run import DryRun, DryRunFlag

if TYPE_CHECKING:
    from ..fleet_view import TransitionView


def scale(
    model: Annotated[str, typer.Argument(help="Name of the model.", autocompletion=complete_model)],
    experts: Annotated[
        str,
        typer.Option(
            "--experts", "-e", help="N devices, +K or -K from now, or auto: the planner's choice."
        ),
    ] = "",
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Show the phases until it is done.")
    ] = True,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait, else exit 5.")] = 180.0,
    dry_run: DryRunFlag = DryRun.NONE,
    output: Annotated[str, typer.Option("-o", "--output", help="text, json or yaml.")] = "text",
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Undo the change that is being prepared.")
    ] = False,
    take: Annotated[
        bool, typer.Option("--take", help="Take the field from gitops or the autoscaler.")
    ] = False,
    pace: Annotated[
        Pace, typer.Option(help="gentle: those who are served come first. prompt: hurry.")
    ] = Pace.GENTLE,
    write: Annotated[
        str, typer.Option("--write", help="Change this YAML file instead of the fleet.")
    ] = "",
) -> None:
    """Spread the routed experts of every layer over N devices, live: no request is dropped.

    Any width from 1 to all devices works, dividing the number of experts or not. A number takes the
    width of a model with `parallelism: auto` into your hands; `--experts auto` gives it back.

    A gentle change takes what the cores have left; a prompt one is ready in about half the time,
    and takes it from those who are served. Heals and creations are always prompt.

    \b
    Examples:
      moectl scale chat --experts 4
      moectl scale chat --experts +1 --no-wait
      moectl scale chat --experts +2 --pace prompt
      moectl scale chat --experts -2 --dry-run=server
      moectl scale chat --experts auto
      moectl scale chat --experts 3 -o json
      moectl scale chat --cancel
      moectl scale chat --experts 4 --write clusters/chat.yaml
    """
    from ..scale_ways import cancel_running, write_width

    if cancel:
        cancel_running(model)
        return
    if write:
        write_width(write, model, experts, dry_run=dry_run is not DryRun.NONE)
        return
    _scale(model, experts, Choices(wait, timeout, dry_run, output, take, pace))


@dataclass(frozen=True, slots=True)
class Choices:
    """The options of one call."""

    wait: bool
    timeout: float
    dry_run: DryRun
    output: str
    take: bool
    pace: Pace


def _scale(model: str, experts: str, choices: Choices) -> None:
    """Ask the controller, and show how it goes."""
    import uuid

    from ..dry_run import suffix, told
    from ..instance import connect
    from ..render import print_data
    from ..scaling import check_width_text, is_settled, plan_lines, summary_lines

    wanted = check_width_text(experts)
    if choices.dry_run is DryRun.CLIENT:
        body = {"model": model, "experts": wanted, "take": choices.take}
        body |= {"pace": choices.pace}
        told(f"model/{model} would be asked for {wanted} devices", body, choices.output)
        return
    is_rehearsal = choices.dry_run is DryRun.SERVER
    with connect() as client:
        operation_id = f"scale-{uuid.uuid4().hex[:12]}"
        answer = client.scale(
            model,
            wanted,
            operation_id=operation_id,
            dry_run=is_rehearsal,
            take=choices.take,
            pace=choices.pace,
        )
        plan = answer.get("plan") or {}
        if choices.output == "text":
            head = [f"model/{model} to {answer['to_width']} devices{suffix(choices.dry_run)}"]
            _print([*(head if is_rehearsal else []), *plan_lines(answer)])
        if is_rehearsal or not choices.wait or (not plan and is_settled(client.fleet(), answer)):
            if choices.output != "text":
                print_data(answer, choices.output)
            return
        ended = _follow(client, answer, choices.timeout)
        if ended is None:
            _tell_there(client, answer, choices.output)
        elif choices.output == "text":
            _print(summary_lines(ended))
        else:
            from ...core.records import to_plain

            print_data(to_plain(ended) | {"plan": plan}, choices.output)


def _follow(client: Any, answer: dict[str, Any], timeout: float) -> "TransitionView | None":
    """Show the phases until the end; Ctrl-C leaves the operation running, and says so."""
    from ..progress import open_progress
    from ..scaling import tell_phases
    from ..waiting import wait_scaled

    try:
        with open_progress() as progress:
            return wait_scaled(client, answer, timeout, tell_phases(progress))
    except KeyboardInterrupt:
        operation_id = answer["operation_id"]
        text = f"the change goes on; `moectl get transitions {operation_id}` shows how far it is"
        print(text, file=sys.stderr)
        raise


def _tell_there(client: Any, answer: dict[str, Any], output: str) -> None:
    """The width came under another operation's id: say where the model is now."""
    from ..render import print_data

    found = client.fleet().model(str(answer["model"]))
    width = len(found.placement.ranks) if found and found.placement else 0
    if output != "text":
        print_data(answer | {"settled": True, "width": width}, output)
        return
    print(f"{answer['model']} is spread over {width} devices; another operation took it there")


def _print(lines: list[str]) -> None:
    for line in lines:
        print(line)
