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
from .model import EngineSpec, MemorySpec, ModelSpec, ParallelismSpec, SloSpec, SourceSpec

__all__ = [
    "API_VERSION",
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
    "cluster_spec_from_plain",
    "load_documents",
    "load_text",
    "model_spec_from_plain",
    "spec_from_plain",
    "to_plain",
]
