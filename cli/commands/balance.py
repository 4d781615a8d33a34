"""`moectl balance`: copies of experts on devices for recorded loads, and what that is worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ...placement.copies.layout import Floats
    from ..balancing import Answer


def balance(
    files: Annotated[
        list[Path], typer.Argument(help="Expert loads; with several, the plan holds for each.")
    ],
    slots: Annotated[
        str, typer.Option(help="Copies of a layer; auto:288: by layer, 288 in the mean.")
    ] = "288",
    devices: Annotated[int, typer.Option(min=1, help="Devices that share a layer.")] = 32,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes that share the devices.")] = 1,
    groups: Annotated[int, typer.Option(min=1, help="Expert groups of the router.")] = 1,
    shares: Annotated[
        str, typer.Option(help="split: the engine splits tokens; equal: it does not.")
    ] = "split",
    local: Annotated[
        float,
        typer.Option(min=0.0, help="Price of work off an expert's node: 0.02 is mild, 10 dear."),
    ] = 0.0,
    current: Annotated[
        Path | None, typer.Option(help="The placement that is there: few copies move.")
    ] = None,
    move: Annotated[str, typer.Option(help="With --current: copies that may move.")] = "10%",
    score_on: Annotated[
        list[Path] | None, typer.Option(help="Also score on loads that were not planned for.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan there (JSON).")] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="table or json.")] = "table",
) -> None:
    """Plan how many copies every expert has, on which devices, and who moves.

    Files are summed loads (layers x experts) as SGLang's recorder writes them. Nothing is touched:
    the plan is printed, or written with --out, with the share of tokens that each copy takes.

    \b
    Examples:
      moectl balance monday.json tuesday.json --slots 288 --devices 32 --out plan.json
      moectl balance today.json --current plan.json --move 5% --out next.json
      moectl balance monday.json --score-on tuesday.json -o json
      moectl balance monday.json --slots auto:320 --devices 64
    """
    from ...core.errors import UsageError
    from ...placement.copies.layout import Layout
    from .. import balancing
    from ..expert_loads import moe_layers
    from ..progress import open_progress

    if output not in ("table", "json"):
        raise UsageError(f"-o {output}: not a format", next_step="use table or json")
    if shares not in ("split", "equal"):
        raise UsageError(f"--shares {shares}: not known", next_step="use split or equal")
    count, is_auto = balancing.read_slots(slots)
    layout = Layout(count, devices, nodes, groups)
    wish = balancing.Wish(layout, is_auto, shares, local, current, balancing.read_share(move))
    loads = moe_layers([*files, *(score_on or [])])
    names = list(loads)
    planned = {name: loads[name] for name in names[: len(files)]}
    with open_progress() as progress:
        progress.start("plan", f"{len(planned)} loads, {len(loads[names[0]])} layers")
        found = balancing.answer(planned, wish)
    _show(planned, {name: loads[name] for name in names[len(files) :]}, found, (output, out))


def _show(
    planned: "dict[str, Floats]",
    unseen: "dict[str, Floats]",
    found: "Answer",
    where: tuple[str, Path | None],
) -> None:
    import json
    import sys

    from ...core.errors import RefusedError
    from .. import balancing

    output, out = where
    plain = balancing.to_plain(planned, found)
    plain["scores_on"] = {name: balancing.scores(load, found) for name, load in unseen.items()}
    if out is not None:
        try:
            out.write_text(json.dumps(plain) + "\n", encoding="utf-8")
        except OSError as error:
            raise RefusedError(
                f"--out {out}: {error.strerror}", next_step="name a file in a folder that is there"
            ) from error
        print(f"plan written to {out}", file=sys.stderr)
    if output == "json":
        print(json.dumps(plain, indent=2))
        return
    print("balance = mean / largest load of a device, mean over layers")
    print(f"{'load':40}  {'eplb':>6}  {'equal':>6}  {'split':>6}  {'bound':>6}  worst layer")
    for title, group in (("", plain["scores"]), ("not planned for: ", plain["scores_on"])):
        for name, row in group.items():
            print(
                f"{(title + name)[:40]:40}  {row['eplb']:6.4f}  {row['equal']:6.4f}"
                f"  {row['split']:6.4f}  {row['bound']:6.4f}"
                f"  {row['worst_layer']} ({row['worst_balance']:.4f})"
            )
    for name, load in planned.items():
        worst = int(plain["scores"][name]["worst_layer"])
        print(f"{name}, {balancing.reason(load, found, worst)}")
    _show_moves(found)


def _show_moves(found: "Answer") -> None:
    copies = sum(layout.slots for layout in found.layouts)
    if found.moved[0] >= 0:
        moved = sum(found.moved)
        print(f"moved: {moved:,} of {copies:,} copies ({moved / copies:.1%}); the others stay")
    if found.wish.is_auto:
        counts = sorted({layout.per_device for layout in found.layouts})
        each = [sum(lay.per_device == n for lay in found.layouts) for n in counts]
        spread = ", ".join(f"{k} layers with {n}" for n, k in zip(counts, each, strict=True))
        print(f"slots of a device: {spread}; {copies:,} copies in all")
