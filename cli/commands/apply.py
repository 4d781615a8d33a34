"""`moectl apply`: declare specs."""

from typing import TYPE_CHECKING, Annotated

import typer

from ..dry_run import DryRun, DryRunFlag

if TYPE_CHECKING:
    from ..client import ApiClient


def apply(
    file: Annotated[str, typer.Option("--file", "-f", help="YAML file or folder, or - for stdin.")],
    dry_run: DryRunFlag = DryRun.NONE,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the models are Ready.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait, else exit 5.")] = 120.0,
    output: Annotated[str, typer.Option("-o", "--output", help="text, json or yaml.")] = "text",
) -> None:
    """Declare what should run; the controller makes it so.

    All mistakes of all documents are reported at once, and then nothing is changed (exit 3).

    \b
    Examples:
      moectl apply -f clusters/local.yaml
      moectl apply -f clusters/local.yaml --dry-run=server
      moectl apply -f clusters/ --dry-run=client
      cat model.yaml | moectl apply -f - --wait
    """
    import uuid

    from .. import dry_run as dry
    from .. import specs
    from ..instance import connect
    from ..render import print_data

    documents = specs.read_documents(file)
    requests = specs.to_request(documents, specs.folder_of(file))
    if dry_run is DryRun.CLIENT:
        _tell(requests, output)
        return
    is_rehearsal = dry_run is DryRun.SERVER
    with connect() as client:
        operation_id = f"apply-{uuid.uuid4().hex[:12]}"
        answer = client.apply(requests, operation_id=operation_id, dry_run=is_rehearsal)
        if output == "text":
            _print_results(answer, requests, dry.suffix(dry_run))
        else:
            print_data(answer, output)
        names = [str(r["name"]) for r in requests if r["kind"] == "Model"]
        if wait and not is_rehearsal and names:
            _wait(client, names, timeout)


def _tell(requests: list[dict[str, object]], output: str) -> None:
    """What was found good on this machine, and would be sent."""
    from ..dry_run import told

    if output != "text":
        told("", requests, output)
        return
    for request in requests:
        told(f"{str(request['kind']).lower()}/{request['name']} is well-formed", request, output)


def _print_results(answer: object, requests: list[dict[str, object]], suffix: str) -> None:
    """One line a document, as kubectl does."""
    from ..scaling import auto_lines

    results = answer.get("results") if isinstance(answer, dict) else None
    by_name = {(r.get("kind"), r.get("name")): r for r in results or ()}
    for request in requests:
        result = by_name.get((request["kind"], request["name"])) or {}
        outcome = result.get("change") or result.get("action") or result.get("result") or "applied"
        generation = result.get("generation")
        detail = f", generation {generation}" if generation else ""
        print(f"{str(request['kind']).lower()}/{request['name']} {outcome}{detail}{suffix}")
        for line in auto_lines(result):
            print(f"  {line}")


def _wait(client: "ApiClient", names: list[str], timeout: float) -> None:
    from ..fleet_view import ModelView
    from ..listings import change_text
    from ..progress import open_progress
    from ..waiting import wait_models_ready

    with open_progress() as progress:

        def tell(model: ModelView) -> None:
            progress.start(f"model {model.name}", change_text(model.active))

        wait_models_ready(client, names, timeout, tell)
        for name in names:
            progress.end(f"model {name}", "ok", "Ready")
