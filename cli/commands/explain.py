"""`moectl explain`: what does a field of a spec mean, and what may stand there?"""

from typing import Annotated

import typer


def explain(
    path: Annotated[str, typer.Argument(help="Such as model or model.parallelism.experts.")],
) -> None:
    """Describe a kind or a field: its type, its limits, its default, what is inside it.

    \b
    Examples:
      moectl explain model
      moectl explain model.engine.maxBatchTokens
      moectl explain cluster.nodes.devices
    """
    from ..explaining import explanation

    print("\n".join(explanation(path)))
