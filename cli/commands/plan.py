"""`moectl plan`: what would change, or which fleet and layout a model needs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..planning import Planned


REFUSED_MAX = 6


def plan(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Card, config.json or checkpoint folder.")
    ] = "",
    file: Annotated[str, typer.Option("--file", "-f", help="Spec whose Model is planned.")] = "",
    fleet: Annotated[str, typer.Option(help="Devices, such as 32xh200 or 8xb200,16xh100.")] = "",
    lengths: Annotated[
        str, typer.Option(help="Input/output tokens, else the spec's or 4096/1024.")
    ] = "",
    limits: Annotated[str, typer.Option("--slo", help="Such as ttft=2s,tpot=50ms,gap=0.5s.")] = "",
    rate: Annotated[float, typer.Option(help="Requests a second; 0 = as many as can be.")] = 0.0,
    precision: Annotated[str, typer.Option(help="Such as bf16, fp8, nvfp4.")] = "bf16",
    engine: Annotated[str, typer.Option(help="moectl, vllm, sglang or any.")] = "any",
    constants: Annotated[Path | None, typer.Option(help="A fit by `moectl calibrate`.")] = None,
    emit: Annotated[str, typer.Option(help="vllm, sglang or kubernetes: print that.")] = "",
    draw: Annotated[Path | None, typer.Option(help="Draw the layout: a .svg or .png.")] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="table or json.")] = "table",
) -> None:
    """Show what would change on the running fleet, or plan a model for a fleet that is not here.

    Without a model it compares every declared model with its placement. With one it searches
    layouts; nothing is touched. A spec brings its fleet, lengths and limits along, unless you type
    others; alone, a Model with `parallelism: auto` is answered with the width that auto would pick.
    Exit 4 names the limit that binds and the nearest change. A device is a name of the catalogue or
    a YAML file of yours.

    \b
    Examples:
      moectl plan
      moectl plan -f clusters/local.yaml
      moectl plan -m deepseek-v3 --precision fp8 --fleet 32xh200 --slo ttft=2s,tpot=50ms
      moectl plan -m qwen3-30b-a3b --fleet 8xh100 --engine vllm --emit kubernetes
      moectl plan -f clusters/local.yaml --fleet 8xh100 -o json
    """
    from ...core.errors import UsageError

    if output not in ("table", "json"):
        raise UsageError(f"-o {output}: not a format", next_step="use table or json")
    if not model and not file:
        _live(output)
        return
    from .. import plan_words, planning

    others = (model, fleet, lengths, limits, rate, constants, emit, draw)
    is_file_alone = not any(others) and (precision, engine) == ("bf16", "any")
    if is_file_alone and _told_auto(file, output):
        return
    words = plan_words.Words(model, file, lengths, limits, rate, precision, engine)
    planned = planning.ask(*plan_words.resolve(words, fleet, constants))
    if draw is not None:
        plan_words.draw(planned, draw)
    if emit:
        print(plan_words.emitted(planned, emit), end="")
    elif output == "json":
        from ..render import print_data

        print_data(planning.to_plain(planned), "json")
    else:
        _table(planned)


def _told_auto(file: str, output: str) -> bool:
    """Print what `parallelism: auto` picks on the file's own fleet; False when nothing says so."""
    from ..auto_offline import picked
    from ..render import print_data
    from ..scaling import auto_lines

    found = picked(file)
    if found and output == "json":
        print_data(found, "json")
    elif found:
        print("\n".join([f"model {found['model']}, nothing is running yet:", *auto_lines(found)]))
    return bool(found)


def _table(planned: "Planned") -> None:
    from ..planning import candidate_plain, refused, why

    fleet, work = planned.fleet, planned.question.workload
    tokens = fleet.rate * work.output_tokens
    print(
        f"{planned.model}, {planned.question.precision.name}: {fleet.rate:.2f} requests/s,"
        f" {tokens:,.0f} output tokens/s on {fleet.devices_used} devices"
    )
    print(
        f"at most {fleet.bound:.2f} requests/s by the density bound"
        f" (gap {fleet.gap:.1%}); planned in {planned.seconds * 1e3:.0f} ms"
    )
    print(
        "replicas  device  role     layout            batch   chunk  TTFT ms  TPOT ms  GB/device"
        "  engines"
    )
    for block in fleet.blocks:
        each = candidate_plain(planned, block.candidate, planned.pools[block.pool].hardware.kind)
        memory = sum(each["memory_gb"].values())
        name = planned.pools[block.pool].hardware.name
        print(
            f"{block.replicas:8}  {name:6}  {each['role']:7}  {each['layout']:16}"
            f"  {each['batch']:5}  {each['chunk']:6}  {each['ttft_s'] * 1e3:7.0f}"
            f"  {each['tpot_s'] * 1e3:7.1f}"
            f"  {memory:9.1f}  {','.join(each['engines']) or 'none'}"
        )
        if "moectl" in each["not_on"]:
            print(f"          export-only: {each['not_on']['moectl']}")
    reasons = why(fleet)
    if reasons:
        print("why not others:")
        for item in reasons:
            print(f"  {item.limit:8} {item.text}")
    for family in refused(fleet)[:REFUSED_MAX]:
        print(f"  no layout of {family.layouts} {family.family}: {family.nearest.text}")


def _live(output: str) -> None:
    """Declared against placed, of every model of the running fleet."""
    from ..instance import connect
    from ..plan_live import changes
    from ..render import print_data

    with connect() as client:
        found: list[dict[str, Any]] = changes(client)
    if output == "json":
        print_data(found, "json")
        return
    if not found:
        print("nothing would change: every model stands as declared")
    for change in found:
        auto = " (parallelism: auto)" if change.get("auto") else ""
        print(f"{change['model']}: experts over {change['from']} -> {change['to']} devices{auto}")
        for line in change["lines"]:
            print(f"  {line}")
