"""What may a client send? The bodies of the API's writes, strict: unknown fields are errors."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from ...core.plan import Pace

DOCUMENTS_MAX = 1000  # of one apply; more belongs into several
EXAMPLE_MODEL: JsonDict = {
    "kind": "Model",
    "name": "chat",
    "spec": {"source": {"path": "/models/demo"}, "parallelism": {"experts": 2}},
}

OperationId = Annotated[
    str | None,
    Field(
        description="made up by the caller, not auto-...; sent twice it is carried out once",
        max_length=63,
    ),
]
DryRun = Annotated[bool, Field(description="answer as if, and write nothing")]
Take = Annotated[bool, Field(description="take fields that gitops or the autoscaler owns")]


class StrictBody(BaseModel):
    """A body that says no more than we understand."""

    model_config = ConfigDict(extra="forbid")


class OriginBody(StrictBody):
    """Where documents come from; refusals name it to people."""

    commit: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[0-9A-Za-z._-]+$")]
    path: Annotated[str, Field(min_length=1, max_length=512)]


class ApplyBody(StrictBody):
    """Documents with absolute source paths, as `moectl apply` sends them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"documents": [EXAMPLE_MODEL], "operation_id": "apply-1", "dry_run": True}]
        }
    )

    documents: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=DOCUMENTS_MAX)]
    operation_id: OperationId = None
    dry_run: DryRun = False
    manager: Annotated[
        Literal["person", "gitops", "autoscaler"],
        Field(description="who will own the fields that change; gitops needs an origin"),
    ] = "person"
    origin: OriginBody | None = None
    take: Take = False


class ScaleBody(StrictBody):
    """`experts` is a width, or a change of it such as "+2" or "-1"."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"experts": "4", "operation_id": "scale-1"}]}
    )

    experts: Annotated[str, Field(max_length=16)] | int
    operation_id: OperationId = None
    expected_generation: Annotated[int | None, Field(ge=0, le=2**53)] = None
    dry_run: DryRun = False
    manager: Literal["person", "autoscaler"] = "person"
    take: Take = False
    pace: Annotated[
        Pace, Field(description="gentle gives way to those who are served, prompt hurries")
    ] = Pace.GENTLE


class ReleaseBody(StrictBody):
    """A field, by its dotted path in the spec."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"field": "parallelism.experts"}]})

    field: Annotated[str, Field(min_length=1, max_length=256)]
    dry_run: DryRun = False


class TokenBody(StrictBody):
    """A new token: a name for people, what it may do, and whose models it is for."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "ci", "role": "operator", "tenant": "default"}]}
    )

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
    role: Literal["viewer", "operator", "admin"]
    tenant: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")] = "default"
