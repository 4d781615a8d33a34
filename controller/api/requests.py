"""What may a client send? The bodies of the API's writes, strict: unknown fields are errors."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

DOCUMENTS_MAX = 1000  # of one apply; more belongs into several


class StrictBody(BaseModel):
    """A body that says no more than we understand."""

    model_config = ConfigDict(extra="forbid")


class ApplyBody(StrictBody):
    """Documents with absolute source paths, as `moectl apply` sends them."""

    documents: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=DOCUMENTS_MAX)]
    operation_id: str | None = None
    dry_run: bool = False


class ScaleBody(StrictBody):
    """`experts` is a width, or a change of it such as "+2" or "-1"."""

    experts: str | int
    operation_id: str | None = None
    expected_generation: int | None = None
    dry_run: bool = False
