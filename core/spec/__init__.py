"""Specs: what people declare, as typed and checked documents. See `load` for the way in."""

from .cluster import ClusterSpec, DeviceSpec, NodeSpec
from .load import (
    API_VERSION,
    Document,
    Spec,
    cluster_spec_from_plain,
    load_documents,
    load_text,
    model_spec_from_plain,
    spec_from_plain,
    to_plain,
)
from .model import (
    AUTO,
    LIVE_SETTINGS,
    EngineSpec,
    MemorySpec,
    ModelSpec,
    ParallelismSpec,
    SloSpec,
    SourceSpec,
    WorkloadSpec,
)

__all__ = [
    "API_VERSION",
    "AUTO",
    "LIVE_SETTINGS",
    "ClusterSpec",
    "DeviceSpec",
    "Document",
    "EngineSpec",
    "MemorySpec",
    "ModelSpec",
    "NodeSpec",
    "ParallelismSpec",
    "SloSpec",
    "SourceSpec",
    "Spec",
    "WorkloadSpec",
    "cluster_spec_from_plain",
    "load_documents",
    "load_text",
    "model_spec_from_plain",
    "spec_from_plain",
    "to_plain",
]
