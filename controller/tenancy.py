"""What may a token see and touch? Pure: the picture of the fleet less what is not its tenant's.

Every read is answered from `visible`, so no route can forget it. An admin sees all tenants; others
see their own models and what belongs to them. Nodes are shared and shown to all, without the names
of foreign models. To who may not see a model it does not exist: 404, never 403.
"""

import dataclasses
from typing import Any

from ..core.errors import ConflictError, NotFoundError
from ..core.records import DeviceUsage, NodeStats, TokenRecord
from . import masking
from .auth import Role, role_of
from .observe import Snapshot

OTHERS = "others"  # who holds pages that are not the viewer's to know about


def sees_all(token: TokenRecord) -> bool:
    """Whether a token stands above tenants."""
    return role_of(token) >= Role.ADMIN


def visible(snapshot: Snapshot, token: TokenRecord) -> Snapshot:
    """The snapshot as this token may see it."""
    if sees_all(token):
        return snapshot
    hidden = hidden_models(snapshot, token)
    hidden_operations = {
        key for key, seen in snapshot.transitions.items() if seen.value.model in hidden
    }
    shown = dataclasses.replace(
        snapshot,
        specs={k: v for k, v in snapshot.specs.items() if k[0] != "Model" or k[1] not in hidden},
        workers=_without(snapshot.workers, hidden),
        placements=_without(snapshot.placements, hidden),
        transitions=_without(snapshot.transitions, hidden_operations),
        active=_without(snapshot.active, hidden),
        acks=_without(snapshot.acks, hidden_operations),
        status=_without(snapshot.status, hidden),
        stats={name: _stats(stats, hidden) for name, stats in snapshot.stats.items()},
        events={k: e for k, e in snapshot.events.items() if _may_read(e.subject, hidden)},
        tokens={},
    )
    return _masked(shown)


def hidden_models(snapshot: Snapshot, token: TokenRecord) -> set[str]:
    """Models of other tenants. One whose declaration is gone is nobody's, so only admins see it."""
    declared = {
        name: seen.value.tenant for (kind, name), seen in snapshot.specs.items() if kind == "Model"
    }
    past = {seen.value.model for seen in snapshot.transitions.values()}
    past |= {_model_of(event.subject) for event in snapshot.events.values()}
    names = set(snapshot.models()) | past | set(snapshot.workers)
    return {name for name in names if name and declared.get(name) != token.tenant}


def require_model(name: str, snapshot: Snapshot, token: TokenRecord) -> None:
    """Raise NotFoundError for a model of another tenant, as for one that is not there."""
    if not sees_all(token) and name in hidden_models(snapshot, token):
        raise NotFoundError(f"no model {name!r} is declared")


def require_name(name: str, snapshot: Snapshot, token: TokenRecord) -> None:
    """Raise ConflictError when a model of this name belongs to another tenant."""
    seen = snapshot.model_spec(name)
    if seen is not None and not sees_all(token) and seen.value.tenant != token.tenant:
        raise ConflictError(
            f"the name {name!r} is taken in this cluster", next_step="give the model another name"
        )


def _without(items: Any, hidden: set[str]) -> dict[str, Any]:
    return {key: item for key, item in items.items() if key not in hidden}


def _masked(shown: Snapshot) -> Snapshot:
    """A snapshot whose texts name the pages of no models but those that are declared in it."""
    own = {name for kind, name in shown.specs if kind == "Model"}

    def each(items: Any, field: str) -> dict[Any, Any]:
        return {key: masking.field(item, field, own) for key, item in items.items()}

    def each_seen(items: Any, change: Any) -> dict[str, Any]:
        return {
            key: dataclasses.replace(seen, value=change(seen.value)) for key, seen in items.items()
        }

    return dataclasses.replace(
        shown,
        workers={model: each(workers, "message") for model, workers in shown.workers.items()},
        transitions=each_seen(shown.transitions, lambda t: masking.field(t, "reason", own)),
        acks={key: each(acks, "error") for key, acks in shown.acks.items()},
        status=each_seen(shown.status, lambda record: masking.status(record, own)),
        events=each(shown.events, "message"),
    )


def _model_of(subject: str) -> str:
    """The model of an event's subject: "model/chat", "worker/chat/n1/d0"; "" for others."""
    kind, _, rest = subject.partition("/")
    return rest.partition("/")[0] if kind in ("model", "worker") else ""


def _may_read(subject: str, hidden: set[str]) -> bool:
    return not subject.startswith("token/") and _model_of(subject) not in hidden


def _stats(stats: NodeStats, hidden: set[str]) -> NodeStats:
    return dataclasses.replace(
        stats,
        workers=tuple(worker for worker in stats.workers if worker.model not in hidden),
        devices=tuple(_usage(device, hidden) for device in stats.devices),
    )


def _usage(device: DeviceUsage, hidden: set[str]) -> DeviceUsage:
    used: dict[str, int] = {}
    for owner, pages in device.used.items():
        name = OTHERS if owner.partition("/")[0] in hidden else owner
        used[name] = used.get(name, 0) + pages
    return dataclasses.replace(device, used=used)
