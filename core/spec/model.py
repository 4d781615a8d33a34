"""Kind `Model`: which checkpoint is served, how wide, in how much memory; what users are owed.

Sizes are per device and in bytes, times in seconds. What a model *is* (layers, experts, bytes) is
read from its checkpoint (`core.facts`), never declared here.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator
from pydantic.annotated_handlers import GetJsonSchemaHandler

from .patterns import count_schema
from .types import Bytes, Duration, FolderPath, SpecModel, WholeCount, mistake
from .values import Finding, child, quantity, text_of

WIDTH_MAX = 4096  # ranks; owner tables grow with it
THREADS_MAX = 256  # of arithmetic in one rank; more than any machine has cores to spare for one
AUTO: Literal["auto"] = "auto"

#: Fields of `engine` that a running worker takes at the flip to a new epoch. The others decide how
#: memory is laid out, so they hold for as long as the model lives.
LIVE_SETTINGS = ("maxBatchTokens", "maxRequests", "prefillChunk", "prefixCache", "threads")

DtypeChoice = Literal["auto", "float32", "bfloat16"]
Precision = Literal["standard", "reproducible"]


class SourceSpec(SpecModel):
    """Where the weights are: a folder with config.json, tokenizer and safetensors."""

    path: FolderPath


def _width(value: Any) -> Any:
    if value == AUTO and isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        shown = f"{value!r}" if isinstance(value, (str, float)) else type(value).__name__
        raise mistake(
            f"{shown} is not a width", "write a number of devices, or auto for the planner's choice"
        )
    if not 1 <= value <= WIDTH_MAX:
        side = "small" if value < 1 else "large"
        raise mistake(f"{value} is too {side}", f"use 1 to {WIDTH_MAX}, or auto")
    return value


Width = Annotated[
    int | Literal["auto"],
    PlainValidator(_width),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1, "maximum": WIDTH_MAX}, {"const": AUTO}]}
    ),
]


class ParallelismSpec(SpecModel):
    """`experts`: over how many devices the routed experts of every layer are spread, or `auto`.

    `parallelism: auto` is short for `parallelism: {experts: auto}`: the planner chooses the width
    among the layouts that the engine can execute (docs/placement.md).
    """

    experts: Width

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value == AUTO:
                return {"experts": AUTO}
            raise mistake(f"{value!r} is not a parallelism", "write auto, or experts: N below it")
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [handler(core_schema), {"const": AUTO}]}


class MemorySpec(SpecModel):
    """`kv_per_device`: bytes of keys and values that a rank starts with."""

    kv_per_device: Bytes = 32 * 2**20


class EngineSpec(SpecModel):
    """Limits of one rank; every queue and batch in the engine has one of these as its end."""

    max_batch_tokens: Annotated[WholeCount, Field(ge=4, le=2**20), count_schema(4, 2**20)] = 128
    max_requests: Annotated[WholeCount, Field(ge=1, le=65536), count_schema(1, 65536)] = 64
    prefill_chunk: Annotated[WholeCount, Field(ge=1, le=2**20), count_schema(1, 2**20)] = 64
    kv_block_tokens: Annotated[int, Field(ge=1, le=1024)] = 16
    # The model's own when None.
    max_context: Annotated[WholeCount, Field(ge=1), count_schema(1)] | None = None
    # Of routed experts in a cpu device's pages (all else, and arithmetic, is float32 there); of all
    # weights on other devices.
    dtype: DtypeChoice = "auto"
    prefix_cache: bool = True  # requests that begin alike share KV blocks; changes no bit
    # Of arithmetic in one worker; one core a rank is what a `cpu` device stands for.
    threads: Annotated[int, Field(ge=1, le=THREADS_MAX)] = 1


class SloSpec(SpecModel):
    """What users are owed: time to the first token, and time per token after it, in seconds."""

    ttft: Duration | None = None
    tpot: Duration | None = None


class WorkloadSpec(SpecModel):
    """What the model is expected to be asked: `parallelism: auto` and plans count with it.

    `requests_per_s` None: as many as the fleet can.
    """

    input_tokens: Annotated[WholeCount, Field(ge=1), count_schema(1)] = 1024
    output_tokens: Annotated[WholeCount, Field(ge=1), count_schema(1)] = 256
    requests_per_s: Annotated[float, Field(gt=0, le=1e9)] | None = None


class ModelSpec(SpecModel):
    """A served model."""

    source: SourceSpec
    parallelism: ParallelismSpec
    memory: MemorySpec = MemorySpec()
    engine: EngineSpec = EngineSpec()
    precision: Precision = "standard"
    slo: SloSpec = SloSpec()
    workload: WorkloadSpec = WorkloadSpec()
    replay_deadline: Duration = 60.0  # how long a request may wait for another rank


def check_model(spec: object) -> Iterator[Finding]:
    """What the types cannot say: limits that contradict each other."""
    engine = child(spec, "engine")
    fields = EngineSpec.model_fields
    batch = quantity(engine, "maxBatchTokens", fields["max_batch_tokens"].default)
    chunk = quantity(engine, "prefillChunk", fields["prefill_chunk"].default)
    if batch is not None and chunk is not None and chunk > batch:
        given = "prefillChunk" if "prefillChunk" in engine else "maxBatchTokens"
        yield Finding(
            ("engine", given),
            f"a prefill chunk of {chunk} tokens does not fit a batch of {batch}",
            f"lower prefillChunk to {batch} or raise maxBatchTokens to {chunk}",
        )
    threads = quantity(engine, "threads", fields["threads"].default)
    if threads is not None and threads > 1 and text_of(spec, "precision") == "reproducible":
        yield Finding(
            ("engine", "threads"),
            f"rows keep their bits with one thread only, not with {threads}",
            "leave threads out, or use precision: standard",
        )
