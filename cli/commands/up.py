"""`moectl up`: bring the embedded fleet up."""

from typing import Annotated

import typer


def up(
    file: Annotated[
        str, typer.Option("--file", "-f", help="Spec with one Cluster and any Models.")
    ] = "clusters/local.yaml",
    api_port: Annotated[
        int | None, typer.Option(help="Port of the controller's API; 0 = any free. [default: 8401]")
    ] = None,
    gateway_port: Annotated[
        int | None, typer.Option(help="Port of the OpenAI API; 0 = any free. [default: 8400]")
    ] = None,
    etcd_port: Annotated[
        int | None,
        typer.Option(help="Port of etcd, the next one is for its peers; 0 = any. [default: 8402]"),
    ] = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="Start without any model.")] = False,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds until everything must be ready, else exit 5.")
    ] = 120.0,
) -> None:
    """Bring a whole fleet up on this machine: etcd, controller, gateway, agents, models.

    A second `up` on a running fleet changes nothing, and starts whatever part is missing.
    Everything lives in one directory: $MOECTL_HOME, by default ~/.moectl.

    \b
    Examples:
      moectl up
      moectl up -f clusters/local-8.yaml
      moectl up --api-port 0 --gateway-port 0 --etcd-port 0
      moectl up --no-model
    """
    from ...core.paths import Home
    from ..local import UpOptions, bring_up
    from ..progress import open_progress

    options = UpOptions(
        spec=file,
        api_port=api_port,
        gateway_port=gateway_port,
        etcd_port=etcd_port,
        with_models=not no_model,
        deadline_s=timeout,
    )
    with open_progress() as progress:
        result = bring_up(Home.from_environment(), options, progress)
    instance = result.instance
    state = "is up" if result.started else "is already running"
    print(f"fleet {instance.cluster} {state}")
    print(f"  api      {instance.api_url}")
    print(f"  gateway  {instance.gateway_url}/v1")
    if result.models:
        print(f"  models   {', '.join(result.models)}")
