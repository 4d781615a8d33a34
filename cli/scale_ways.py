"""The other ways to scale: take a change back, or change the file that gitops reads."""

from pathlib import Path

from ..core.errors import NotFoundError, RefusedError
from .instance import connect
from .scaling import check_width_text


def cancel_running(model: str) -> None:
    """Forfeit the change of a model that is being prepared; raises when there is none."""
    with connect() as client:
        seen = client.fleet().model(model)
        if seen is None:
            raise NotFoundError(f"no model {model!r} is declared")
        if seen.active is None:
            raise RefusedError(
                f"model {model}: no change is running", next_step="there is nothing to cancel"
            )
        client.post(f"transitions/{seen.active.operation_id}/cancel", None)
        print(f"{seen.active.operation_id} is being undone: epoch {_epoch(seen)} serves on")


def _epoch(seen) -> str:  # type: ignore[no-untyped-def]
    return str(seen.placement.epoch) if seen.placement else "0"


def write_width(file: str, model: str, experts: str, *, dry_run: bool) -> None:
    """Set a model's width in a YAML file; the fleet follows when gitops reads the file."""
    from .yaml_patch import patch_width

    path = Path(file).expanduser()
    wanted = check_width_text(experts)
    old, new = patch_width(path, model, wanted, dry_run=dry_run)
    suffix = " (dry run)" if dry_run else "; commit it, and gitops will carry it out"
    print(f"{path}: model {model} spec.parallelism.experts: {old} -> {new}{suffix}")
