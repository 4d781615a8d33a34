"""`moectl tune`: search engine settings on the live engine, and write the winner as a spec."""

from pathlib import Path
from typing import Annotated, Any

import typer

FileOption = Annotated[
    str,
    typer.Option(
        "--file",
        "-f",
        help="YAML that declares it; else what the fleet declares, or clusters/local.yaml when "
        "none runs.",
    ),
]
SetsOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="SETTING=VALUE,VALUE,... to try; one value fixes it."),
]
LoadOption = Annotated[
    list[str] | None,
    typer.Option(
        "--load",
        help="KEY=VALUE of the workload: requests, input, output (N or LEAST:MOST tokens), rate "
        "(per second, 0: all at once), shared (tokens all prompts begin with), or "
        "file=FILE.jsonl.",
    ),
]
SloOption = Annotated[
    str, typer.Option(help="ttft=200ms,itl=20ms at the 95th percentile; else the spec's slo.")
]
StudyOption = Annotated[
    Path | None, typer.Option(help="Folder of the study; it goes on where it ended.")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="The patch; else MODEL-tuned.yaml in the folder.")
]


def tune(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    file: FileOption = "",
    trials: Annotated[
        int, typer.Option(min=2, max=2000, help="Settings to try, the present ones included.")
    ] = 40,
    sets: SetsOption = None,
    load: LoadOption = None,
    slo: SloOption = "",
    study: StudyOption = None,
    new: Annotated[bool, typer.Option("--new", help="Forget the study of that folder.")] = False,
    seed: Annotated[int, typer.Option(help="Of workload and search.")] = 7,
    budget: Annotated[str, typer.Option(help="End the search after this time.")] = "10m",
    out: OutOption = None,
    output: Annotated[str, typer.Option("-o", "--output", help="text or json.")] = "text",
) -> None:
    """Search engine settings for the most tokens per second within limits, on the live engine.

    The engine of one rank runs in this process; no fleet is touched. The winner is measured against
    the present settings in alternating pairs, and written only when it really beats them.
    Ctrl-C keeps what was measured; the same command goes on with it.

    \b
    Examples:
      moectl tune chat -f clusters/local.yaml
      moectl tune chat --trials 80 --slo ttft=300ms,itl=20ms
      moectl tune chat --load requests=200 --load input=64:512 --load rate=20
      moectl tune chat --set prefillChunk=32,64,128 --set threads=1 -o json
    """
    from ...core.errors import UsageError
    from ..tune import asking

    if output not in ("text", "json"):
        raise UsageError(f"-o {output}: not a format", next_step="use text or json")
    wish = asking.Wish(
        model,
        file,
        trials,
        tuple(sets or ()),
        tuple(load or ()),
        slo,
        study,
        new,
        seed,
        budget,
        out,
    )
    result = asking.carry_out(wish)
    if output == "json":
        from ..render import print_data

        print_data(result, "json")
    else:
        _print(result)
    if result["interrupted"]:
        raise KeyboardInterrupt


def _print(result: dict[str, Any]) -> None:
    trials = result["trials"]
    print(
        f"{trials['finished']} of {trials['asked']} trials: {trials['complete']} measured to the "
        f"end, {trials['pruned']} pruned, {trials['refused']} refused ({result['study']})"
    )
    if result["interrupted"]:
        print("the same command goes on with them")
        return
    verdict = result["verdict"]
    if "ratio" in verdict:
        for name, (before, after) in result["changed"].items():
            print(f"  engine.{name:15} {before} -> {after}")
        ratio = verdict["ratio"]
        print(
            f"tokens/s {result['baseline']['tokens_per_s']:g} -> "
            f"{result['winner']['tokens_per_s']:g}; ratio least {ratio['min']:.3f}, median "
            f"{ratio['median']:.3f}, most {ratio['max']:.3f}; {verdict['wins']} of "
            f"{verdict['pairs']} pairs won, {verdict['wins_needed']} needed"
        )
    print(
        ("beats the present settings: " if verdict["beats"] else "no patch: ") + verdict["reason"]
    )
    if result["patch"]:
        print(f"patch: {result['patch']} (see it with `moectl diff -f`)")
    _print_calibration(result["calibration"])


def _print_calibration(found: dict[str, Any]) -> None:
    if found["before"] is None:
        print(f"time model: not calibrated ({found['reason']})")
        return
    before, after = found["before"], found["after"]
    print(
        f"time model, {found['rows_used']} rows: error of a row it has not seen, TPOT "
        f"{before['tpot_mape']:.0%} -> {after['tpot_mape']:.0%}, TTFT {before['ttft_mape']:.0%} -> "
        f"{after['ttft_mape']:.0%}"
    )
    if found["constants"]:
        print(f"constants: {found['constants']} (for `moectl plan --constants`)")
    else:
        print("the shipped constants predict as well; none written")
