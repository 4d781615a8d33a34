"""What would change on the running fleet? Every model as declared beside where it stands.

Asks the controller to predict, with its own planner and its own numbers; changes nothing.
"""

import uuid
from typing import TYPE_CHECKING, Any

from ..core.errors import MoectlError

if TYPE_CHECKING:
    from .client import ApiClient


def changes(client: "ApiClient") -> list[dict[str, Any]]:
    """One entry a model whose placement is not what its spec says, with the predicted effects."""
    from .scaling import plan_lines

    found = []
    for model in client.fleet().models:
        said = model.spec.get("parallelism", {}).get("experts")
        # What `auto` leads to now stands in the status; the controller chose it.
        wanted = said if said != "auto" else (model.status.desired_width if model.status else 0)
        placed = model.placement.width if model.placement else 0
        if wanted == placed and said != "auto":
            continue
        entry: dict[str, Any] = {"model": model.name, "from": placed, "to": wanted, "lines": []}
        if model.active is not None:
            entry["lines"] = [f"under way: {model.active.kind}, {model.active.phase}"]
        else:
            entry["lines"] = _predicted(client, model.name, said, plan_lines)
        if said == "auto":
            entry["auto"] = True
        found.append(entry)
    return found


def _predicted(client: "ApiClient", name: str, wanted: object, lines: Any) -> list[str]:
    operation = f"plan-{uuid.uuid4().hex[:12]}"
    try:
        answer = client.scale(name, str(wanted), operation_id=operation, dry_run=True)
        return list(lines(answer))
    except MoectlError as error:
        return [f"refused: {error.message}"]
