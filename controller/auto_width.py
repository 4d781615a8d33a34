"""Which width does a model have whose spec says `auto`? The planner's choice, held steady.

Pure. The choice follows from records alone, so every controller comes to the same one: the width
that runs now is its only memory. Three things keep it from flapping: a change has to be worth a
tenth (`placement.auto`), a node counts for growing only once it has been up for a while, and after
a change of its own the model rests.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from ..core.errors import CheckpointError
from ..core.facts import ModelFacts
from ..core.plan import DeviceId, Infeasible, Phase, Placement, TransitionKind, TransitionPlan
from ..core.records import DeviceRecord, TransitionRecord
from ..core.spec import AUTO, ModelSpec
from ..core.spec.catalogue import fitted_constants
from ..core.units import exact_bytes
from ..placement.auto import (
    AutoChoice,
    AutoQuestion,
    AutoReason,
    WidthOption,
    choose,
    refused,
    weigh_widths,
    why_never,
)
from ..placement.constants import Constants
from ..placement.devices import choose_ranks
from ..placement.families import read_shape
from ..placement.quantities import held_precision
from . import planning
from .config import Limits
from .hardware import hardware_of
from .model_facts import Facts
from .observe import Snapshot

AUTO_PREFIX = "auto-"  # operations that nobody asked for by id
EVERY_WIDTH_TO = 64  # all widths up to here, then whole nodes of eight
WIDTHS_MAX = 512
COMMITTED = (Phase.COMMIT, Phase.RETIRE, Phase.DONE)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The width of a model: declared, or chosen. 0: none can be chosen, `refusal` says why."""

    width: int
    choice: AutoChoice | None = None
    refusal: Infeasible | None = None
    wake_at: float | None = None  # when the clock alone may change it

    @property
    def is_auto(self) -> bool:
        """Whether the planner chose it, or could not."""
        return self.choice is not None or self.refusal is not None


@dataclass(frozen=True, slots=True)
class Scene:
    """What a choice is made on. `now` None: as a person asks, nothing rests or settles."""

    snapshot: Snapshot
    facts: Facts
    limits: Limits
    now: float | None = None


def wanted_width(model: str, spec: ModelSpec, old: Placement | None, scene: Scene) -> Wanted:
    """The width to go to from `old`: the declared one, or the choice of the planner."""
    if spec.parallelism.experts != AUTO:
        return Wanted(int(spec.parallelism.experts))
    devices, wake_at = _devices(model, old, scene)
    answer = _chosen(model, spec, old, devices, scene)
    if isinstance(answer, Infeasible):
        return Wanted(old.width if old else 0, None, answer, wake_at)
    rests_until = _rests_until(model, scene) if old is not None else 0.0
    is_resting = scene.now is not None and scene.now < rests_until
    if old is not None and is_resting and answer.width != old.width:
        text = f"stays on {old.width} for a while after its last change; then: {answer.message}"
        rested = AutoChoice(old.width, AutoReason.RESTING, text, answer.options)
        return Wanted(old.width, rested, None, rests_until)
    return Wanted(answer.width, answer, None, wake_at)


def _devices(
    model: str, old: Placement | None, scene: Scene
) -> tuple[dict[DeviceId, DeviceRecord], float | None]:
    """Devices that count, and when more of them may.

    A new model counts with what is declared, for a while: nodes of a fleet come up one by one. A
    running one counts with live nodes, its own at once and others once they have stayed.
    """
    snapshot, now, limits = scene.snapshot, scene.now, scene.limits
    live = planning.live_devices(snapshot)
    spec = snapshot.model_spec(model)
    if old is None:
        waits_until = (spec.value.changed_at if spec else 0.0) + limits.auto_wait_s
        if now is None or now < waits_until:
            return planning.declared_devices(snapshot) | live, waits_until
        return live, None
    if now is None:
        return live, None
    # Its own devices count even while their node is silent: whether they are lost is for the
    # heal to find out, and until then the choice stays what it was.
    held = {d: r for d, r in planning.declared_devices(snapshot).items() if d in old.ranks}
    if _is_asked(model, snapshot):
        return held | live, None  # the answer promised a width: it is not taken back
    own = {device.node for device in old.ranks}
    ready_at = {
        name: node.started_at + limits.auto_settle_s
        for name, node in snapshot.nodes.items()
        if name not in own
    }
    waiting = [at for at in ready_at.values() if at > now]
    counted = {d: r for d, r in live.items() if ready_at.get(d.node, now) <= now}
    return held | counted, min(waiting, default=None)


def _is_asked(model: str, snapshot: Snapshot) -> bool:
    """Whether somebody changed the spec of a running model and the loop has not acted on it.

    What it did for this generation is in the journal before the status says so.
    """
    spec, seen = snapshot.model_spec(model), snapshot.status.get(model)
    if spec is None or seen is None:
        return False
    generation = spec.value.generation
    return seen.value.observed_generation < generation and not any(
        t.generation == generation and t.phase in COMMITTED for t in snapshot.history(model)
    )


def _rests_until(model: str, scene: Scene) -> float:
    """After a change that the planner made: a while, longer when it failed."""
    own = [t for t in scene.snapshot.history(model) if t.operation_id.startswith(AUTO_PREFIX)]
    if not own or _asked_since(model, own[-1], scene):
        return 0.0
    last = own[-1]
    has_failed = last.phase in (Phase.FORFEIT, Phase.FORFEITED)
    rest_s = scene.limits.auto_retry_s if has_failed else scene.limits.auto_rest_s
    return max(last.phase_at.values(), default=last.accepted_at) + rest_s


def _asked_since(model: str, last: TransitionRecord, scene: Scene) -> bool:
    """Whether somebody changed the spec after that change: then it is judged at once."""
    spec = scene.snapshot.model_spec(model)
    return spec is not None and spec.value.generation > last.generation


def _chosen(
    model: str,
    spec: ModelSpec,
    old: Placement | None,
    devices: dict[DeviceId, DeviceRecord],
    scene: Scene,
) -> AutoChoice | Infeasible:
    question = _question(spec, old, devices, scene)
    if isinstance(question, Infeasible):
        return question
    options = list(weighed(question, widths_to(len(devices))))
    while True:
        answer = choose(question, options, old.width if old else 0)
        if isinstance(answer, Infeasible):
            return answer if answer.nearest else _with_nearest(answer, model, spec, devices, scene)
        why = _why_not_placed(model, spec, old, answer.width, devices, scene)
        if not why:
            return answer
        place = next(i for i, o in enumerate(options) if o.width == answer.width)
        options[place] = refused(options[place], why)


def widths_to(devices: int) -> tuple[int, ...]:
    """Every width that is weighed on so many devices."""
    top = min(devices, WIDTHS_MAX)
    return tuple(w for w in range(1, top + 1) if w <= EVERY_WIDTH_TO or w % 8 == 0)


@lru_cache(maxsize=128)
def weighed(question: AutoQuestion, widths: tuple[int, ...]) -> tuple[WidthOption, ...]:
    """Every width's prediction; remembered, because a loop asks the same after every change."""
    return weigh_widths(question, widths, Constants(dict(fitted_constants())))


def _question(
    spec: ModelSpec,
    old: Placement | None,
    devices: Mapping[DeviceId, DeviceRecord],
    scene: Scene,
) -> AutoQuestion | Infeasible:
    known = scene.facts.get(spec.source.path)
    if not isinstance(known, ModelFacts):
        return Infeasible((known.message if known else "the checkpoint was not read yet",))
    if not devices:
        return Infeasible(("no device is alive",), "1 device")
    try:
        shape = read_shape(known.config, f"{spec.source.path}/config.json")
    except CheckpointError as error:
        return Infeasible((error.message,), "`experts: N`: the planner cannot size this family")
    never = why_never(shape)
    if never:
        return Infeasible((never,))
    ranks = choose_ranks(old.ranks if old else (), devices, len(devices))
    hardware = hardware_of(ranks, devices, scene.snapshot)
    if isinstance(hardware, Infeasible):
        return hardware
    expert, other = planning.element_bytes(spec, known, devices)
    room = _room(spec, known, other)
    if isinstance(room, Infeasible):
        return room
    lengths = _lengths(spec, known)
    return AutoQuestion(
        shape=shape,
        precision=held_precision(expert, other),
        hardware=hardware,
        input_tokens=lengths[0],
        output_tokens=lengths[1],
        batch_max=room,
        ttft_s=spec.slo.ttft,
        tpot_s=spec.slo.tpot,
        rate=spec.workload.requests_per_s,
    )


def _lengths(spec: ModelSpec, facts: ModelFacts) -> tuple[int, int]:
    """Prompt and answer of the workload, cut to what the model's context holds."""
    context = min(spec.engine.max_context or facts.context_tokens, facts.context_tokens)
    output = min(spec.workload.output_tokens, max(1, context // 2))
    return max(1, min(spec.workload.input_tokens, context - output)), output


def _room(spec: ModelSpec, facts: ModelFacts, element: int) -> int | Infeasible:
    """Requests that run on a rank at once: by KV and by the engine's own limits."""
    length = sum(_lengths(spec, facts))
    one = length * facts.kv_bytes_per_token(element)
    by_memory = spec.memory.kv_per_device // one
    if by_memory < 1:
        return Infeasible(
            (
                f"a request of {length} tokens keeps {exact_bytes(one)} of KV,"
                f" a device has {exact_bytes(spec.memory.kv_per_device)}",
            ),
            f"memory.kvPerDevice {exact_bytes(one)}",
        )
    return min(by_memory, spec.engine.max_requests, spec.engine.max_batch_tokens)


def _why_not_placed(
    model: str,
    spec: ModelSpec,
    old: Placement | None,
    width: int,
    devices: dict[DeviceId, DeviceRecord],
    scene: Scene,
) -> str:
    """What the transition planner says against a width; "" when it can be reached."""
    if old is not None and old.width == width:
        return ""
    kind = TransitionKind.SCALE if old else TransitionKind.CREATE
    wish = planning.Wish(kind, model, spec, width, old)
    plan = planning.plan_on(wish, devices, scene.snapshot, scene.facts)
    return "" if isinstance(plan, TransitionPlan) else "; ".join(plan.reasons)


def _with_nearest(
    answer: Infeasible,
    model: str,
    spec: ModelSpec,
    devices: dict[DeviceId, DeviceRecord],
    scene: Scene,
) -> Infeasible:
    """The fewest more devices like the last one on which the model would fit."""
    last = max(devices, key=str)
    more = dict(devices)
    for count in range(1, 65):
        more[DeviceId(f"{last.node}-more-{count}", last.device)] = devices[last]
        if not _why_not_placed(model, spec, None, len(more), more, scene):
            plural = "s" if count > 1 else ""
            return dataclasses.replace(
                answer, nearest=f"{count} more device{plural} ({len(more)} in all)"
            )
    return answer
