"""What a device is, beside its memory: a sheet of the catalogue, with any figure replaced.

Written below a device of a `Cluster`. Only plans read it (`moectl plan`, `parallelism: auto`); an
agent finds out by itself what it runs on. Units stand in the names, as in `clusters/devices`.
"""

from typing import Annotated, Any

from pydantic import Field, PlainValidator, WithJsonSchema

from .catalogue import sheet_names
from .explain import did_you_mean
from .types import SpecModel, mistake

Positive = Annotated[float, Field(gt=0, le=1e12)]


def _sheet(value: Any) -> str:
    if isinstance(value, str) and value in sheet_names():
        return value
    raise mistake(f"{value!r} is not a device sheet", did_you_mean(str(value), sheet_names()))


Sheet = Annotated[str, PlainValidator(_sheet), WithJsonSchema({"enum": list(sheet_names())})]


class LinkSpec(SpecModel):
    """One tier of links: how many devices it joins, and what one of them reaches, one direction."""

    devices: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    gbs: Positive | None = Field(default=None, alias="GBs")
    latency_us: Annotated[float, Field(ge=0, le=1e9)] | None = None


class LinksSpec(SpecModel):
    """The tiers, narrow to wide."""

    device: LinkSpec | None = None
    node: LinkSpec | None = None
    rack: LinkSpec | None = None
    fleet: LinkSpec | None = None


class HardwareSpec(SpecModel):
    """A sheet by name, and the figures that differ here."""

    sheet: Sheet
    bandwidth_tbs: Positive | None = Field(default=None, alias="bandwidthTBs")
    peak_tflops: dict[str, Positive] | None = None
    links: LinksSpec | None = None
    price_per_hour: Annotated[float, Field(ge=0, le=1e9)] | None = None
