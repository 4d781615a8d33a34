"""From the words of `moectl plan` to a question, and from its answer to what people run or see."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import RefusedError, UnplaceableError, UsageError

if TYPE_CHECKING:
    from ..core.spec import ModelSpec
    from ..placement.candidates import Question, Workload
    from ..placement.constants import Constants
    from ..placement.emit.commands import Replica
    from ..placement.search import Pool
    from .planning import Planned

ENGINES = ("any", "moectl", "vllm", "sglang", "trtllm")
LENGTHS = "4096/1024"  # a document and a page of answer
TARGETS = ("vllm", "sglang", "kubernetes")


@dataclass(frozen=True, slots=True)
class Words:
    """What was typed."""

    model: str
    file: str
    lengths: str
    limits: str
    rate: float
    precision: str
    engine: str


def resolve(
    words: Words, fleet: str, constants: Path | None
) -> "tuple[str, Question, tuple[Pool, ...], Constants]":
    """(model's name, question, pools, constants); raises UsageError naming the wrong word."""
    from ..placement.candidates import Question
    from ..placement.quantities import PRECISIONS
    from . import catalogue, planning

    if words.precision not in PRECISIONS:
        raise UsageError(
            f"--precision {words.precision}: not known",
            next_step=f"use one of: {', '.join(PRECISIONS)}",
        )
    if words.engine not in ENGINES:
        raise UsageError(
            f"--engine {words.engine}: not known", next_step=f"use one of: {', '.join(ENGINES)}"
        )
    declared = _model_of(words.file) if words.file else None
    if declared is not None:
        words = _as_declared(words, declared[1])
    name, shape = catalogue.find_shape(words.model or (declared[0] if declared else ""))
    precision = PRECISIONS[words.precision]
    if words.precision == "nvfp4" and shape.is_moe:
        precision = PRECISIONS["nvfp4-experts"]  # published MoE checkpoints keep attention wide
    question = Question(shape, precision, words.engine, workload(words))
    pools = planning.read_fleet(fleet) if fleet else planning.declared_fleet(words.file)
    return name, question, pools, catalogue.constants(constants)


def _as_declared(words: Words, spec: "ModelSpec") -> Words:
    """What was not typed is taken from the Model: lengths, limits and rate."""
    work, slo = spec.workload, spec.slo
    limits = [f"{k}={v:g}s" for k, v in (("ttft", slo.ttft), ("tpot", slo.tpot)) if v is not None]
    return replace(
        words,
        lengths=words.lengths or f"{work.input_tokens}/{work.output_tokens}",
        limits=words.limits or ",".join(limits),
        rate=words.rate or work.requests_per_s or 0.0,
    )


def _model_of(file: str) -> "tuple[str, ModelSpec]":
    """The checkpoint that a spec's only Model names, and that Model."""
    from ..core.spec import ModelSpec
    from . import specs

    models = [d for d in specs.read_documents(file) if d.kind == "Model"]
    if len(models) != 1:
        raise UsageError(f"{file} declares {len(models)} models", next_step="name one with --model")
    spec = models[0].spec
    assert isinstance(spec, ModelSpec)
    path = Path(spec.source.path)
    whole = path if path.is_absolute() else (specs.folder_of(file) / path).resolve()
    return str(whole), spec


def workload(words: Words) -> "Workload":
    """Lengths, limits and rate; raises UsageError."""
    from ..core.units import parse_count, parse_duration_s
    from ..placement.candidates import Workload

    try:
        first, _, second = (words.lengths or LENGTHS).partition("/")
        lengths = (parse_count(first), parse_count(second or "1024"))
        limits: dict[str, float] = {}
        for part in filter(None, re.split(r"[,\s]+", words.limits)):
            key, _, value = part.partition("=")
            if key not in ("ttft", "tpot", "gap"):
                raise UsageError(
                    f"--slo {part}: not a limit", next_step="such as ttft=2s,tpot=50ms,gap=0.5s"
                )
            limits[key] = parse_duration_s(value)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if min(lengths) < 1 or words.rate < 0:
        raise UsageError("lengths must be at least 1 token and the rate not negative")
    first_s, each_s, gap_s = (limits.get(key) for key in ("ttft", "tpot", "gap"))
    return Workload(*lengths, first_s, each_s, words.rate or None, gap_s=gap_s)


def replicas(planned: "Planned") -> "list[tuple[Replica, int, Pool]]":
    """What each block of a plan runs, how often, and where."""
    from ..placement.emit.commands import Replica
    from . import catalogue

    work, question = planned.question.workload, planned.question
    context = min(work.input_tokens + work.output_tokens, question.shape.context_tokens)
    return [
        (
            Replica(
                catalogue.repository(planned.model),
                question.shape,
                block.candidate.layout,
                question.precision,
                block.candidate.batch,
                context,
                min(block.candidate.chunk, context),
                block.candidate.role,
            ),
            block.replicas,
            planned.pools[block.pool],
        )
        for block in planned.fleet.blocks
    ]


def emitted(planned: "Planned", target: str) -> str:
    """Command lines or manifests, checked against the engine's rules."""
    from ..placement.emit.commands import command

    if target not in TARGETS:
        raise UsageError(f"--emit {target}: not known", next_step=f"use: {', '.join(TARGETS)}")
    if target == "kubernetes":
        import json

        import yaml

        # Through JSON, so that parts that are used twice are written twice, without anchors.
        objects = [json.loads(json.dumps(item)) for item in _objects(planned)]
        return "---\n".join(yaml.safe_dump(item, sort_keys=False) for item in objects)
    import shlex

    lines = []
    for replica, count, pool in replicas(planned):
        lines.append(f"# {count} x on {replica.layout.devices} {pool.hardware.name}")
        lines.append(shlex.join(command(target, replica)))
    return "\n".join(lines) + "\n"


def _objects(planned: "Planned") -> list[dict[str, Any]]:
    from ..placement.emit.kubernetes import manifest, service

    engine = planned.question.engine
    if engine not in ("vllm", "sglang"):
        raise RefusedError(
            f"--emit kubernetes needs an engine with an image, not {engine}",
            next_step="add --engine vllm or --engine sglang",
        )
    objects: list[dict[str, Any]] = []
    for replica, count, pool in replicas(planned):
        objects.append(manifest(engine, replica, count, pool.node_devices, pool.hardware.kind))
        front = service(replica)
        if front not in objects:
            objects.append(front)
    return objects


def draw(planned: "Planned", file: Path) -> None:
    """Draw the first block's replica into an SVG or PNG file."""
    from ..placement.draw import picture, svg
    from .draw_file import write_drawing

    if not planned.fleet.blocks:
        raise UnplaceableError(f"{planned.model}: nothing to draw")
    block = planned.fleet.blocks[0]
    pool = planned.pools[block.pool]
    role = "" if block.candidate.role == "serve" else f"{block.candidate.role} replicas, "
    count = f"{block.replicas} x " if block.replicas > 1 else ""
    title = f"{planned.model}: {role}{count}{block.candidate.layout} on {pool.hardware.title}"
    words = (planned.question.shape, block.candidate.layout, title, pool.node_devices)
    write_drawing(file, picture(*words), svg(*words))
