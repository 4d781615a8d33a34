"""When is it done? Waits with a deadline, a description of what is awaited, and a way to fail
early.

Nothing here decides; it reads snapshots until one says yes, no, or the deadline comes (exit 5). The
end of an operation is told by a stream, because asking again and again costs the cores that serve.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core.errors import DeadlineError, MoectlError, UnplaceableError
from .client import ApiClient
from .fleet_view import FleetView, ModelView, TransitionView, transition_from_plain

POLL_S = 0.1
#: The longest that the API lets one stream be asked for; who waits longer asks again.
WATCH_S_MAX = 3600.0
# Reasons of the Admitted condition that mean "there is no room", as the API's exit code 4 does.
UNPLACEABLE_WORDS = ("Unplaceable", "Infeasible", "DoesNotFit", "NoPlacement")


def wait_until(
    what: str, deadline_s: float, check: Callable[[], bool], *, poll_s: float = POLL_S
) -> None:
    """Call `check` until it says True; raises DeadlineError naming `what`."""
    end = time.monotonic() + deadline_s
    while not check():
        if time.monotonic() >= end:
            raise DeadlineError(
                f"{what}: not there after {deadline_s:.0f} s",
                next_step="`moectl status` shows what is missing; --timeout waits longer",
            )
        time.sleep(poll_s)


def wait_models_ready(
    client: ApiClient,
    names: Sequence[str],
    deadline_s: float,
    report: Callable[[ModelView], None],
) -> FleetView:
    """Wait until every named model is Ready; raises early when one cannot become so."""
    seen: list[FleetView] = []

    def check() -> bool:
        seen[:] = [client.fleet()]
        models = [model for name in names if (model := seen[0].model(name)) is not None]
        for model in models:
            report(model)
            raise_if_hopeless(model)
        return len(models) == len(names) and all(model.is_whole for model in models)

    wait_until(f"model {', '.join(names)} Ready", deadline_s, check, poll_s=0.25)
    return seen[0]


def raise_if_hopeless(model: ModelView) -> None:
    """Raise when the controller has said no to the newest generation of a model."""
    status = model.status
    if status is None or status.observed_generation < model.generation:
        return
    for condition in status.conditions:
        if condition.type != "Admitted" or condition.status != "False":
            continue
        if condition.reason in UNPLACEABLE_WORDS:
            raise UnplaceableError(f"model {model.name}: {condition.message}")
        raise MoectlError(f"model {model.name}: {condition.reason}: {condition.message}")
    if model.generation and status.failed_generation == model.generation:
        raise MoectlError(
            f"model {model.name}: the last change was forfeited: {_why(model)}",
            next_step="`moectl get transitions` and `moectl get events` tell more",
        )


def _why(model: ModelView) -> str:
    words = (
        [f"{c.type} {c.reason}: {c.message}" for c in model.status.conditions]
        if model.status
        else []
    )
    return "; ".join(words) or "no reason given"


def wait_transition(
    client: ApiClient,
    operation_id: str,
    deadline_s: float,
    report: Callable[[TransitionView], None],
) -> TransitionView:
    """Wait for the end of a transition; raises MoectlError when it was forfeited."""
    ended = _wait_operation(client, operation_id, deadline_s, report, lambda fleet: False)
    assert ended is not None  # nothing but its own end ends the wait
    return ended


def wait_scaled(
    client: ApiClient,
    answer: Mapping[str, Any],
    deadline_s: float,
    report: Callable[[TransitionView], None],
) -> TransitionView | None:
    """Wait for what an accepted scale leads to; None when its width came under another id.

    So it is when an operation with the same target ran already. Raises as `wait_transition` does,
    and when the controller has said no to the scale.
    """

    def is_there(fleet: FleetView) -> bool:
        return _is_carried_out(fleet, answer)

    return _wait_operation(client, str(answer["operation_id"]), deadline_s, report, is_there)


def _wait_operation(
    client: ApiClient,
    operation_id: str,
    deadline_s: float,
    report: Callable[[TransitionView], None],
    is_there: Callable[[FleetView], bool],
) -> TransitionView | None:
    """The end of an operation, told by one stream; the fleet is asked where the stream ends.

    `is_there` says of a fleet without a transition of this id whether there will be none.
    """
    seen, end = list[TransitionView](), time.monotonic() + deadline_s

    def check() -> bool:
        found = _follow(client, operation_id, end - time.monotonic(), report)
        if found is None:
            fleet = client.fleet()
            found = _look(fleet, operation_id, report)
            if found is None:
                seen.clear()
                return is_there(fleet)
        seen[:] = [found]
        return found.is_over

    wait_until(f"operation {operation_id}", deadline_s, check)
    return _served(seen[0]) if seen else None


def _follow(
    client: ApiClient,
    operation_id: str,
    left_s: float,
    report: Callable[[TransitionView], None],
) -> TransitionView | None:
    """The transition at its end; None when the stream has to be explained by the fleet.

    So it is when the stream breaks off, when nobody knows the operation (yet), and when there is
    no transition of this id: the loop said no, or there is nothing to do.
    """
    if left_s <= 0:
        return None
    with contextlib.suppress(MoectlError):  # asking for the fleet tells what is wrong
        for told in client.watch_transition(operation_id, min(left_s, WATCH_S_MAX)):
            if "record_id" in told:
                view = transition_from_plain(told)
                report(view)
                if view.is_over:
                    return view
            elif told["final"] or told["reason"]:
                return None
    return None


def _look(
    fleet: FleetView, operation_id: str, report: Callable[[TransitionView], None]
) -> TransitionView | None:
    found = fleet.transition(operation_id)
    if found is not None:
        report(found)
    return found


def _is_carried_out(fleet: FleetView, answer: Mapping[str, Any]) -> bool:
    """Whether the generation of an answer is over, with no transition that bears its id."""
    model = fleet.model(str(answer["model"]))
    if model is None:
        raise MoectlError(f"model {answer['model']} is gone: somebody deleted it")
    raise_if_hopeless(model)
    seen = model.status.observed_generation if model.status else 0
    return model.active is None and seen >= int(answer["generation"])


def _served(ended: TransitionView) -> TransitionView:
    if ended.phase == "forfeited":
        raise MoectlError(
            f"operation {ended.operation_id} was forfeited: {ended.reason or 'no reason given'}; "
            f"{ended.model} serves on at width {ended.from_width}",
            next_step="`moectl get events` tells what failed; the operation can be repeated",
        )
    return ended
