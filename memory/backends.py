"""Which back end belongs to a kind of device? Loaded by name: a host needs none of the others.

The names are those of the spec: "cpu", "cuda", "ascend". Standard library only until one is asked
for, because the HMM imports this file.
"""

from collections.abc import Mapping
from importlib import import_module

from ..core.errors import MappingError
from .backend import Backend

_PLACES: Mapping[str, tuple[str, str]] = {
    "cpu": (".host", "HostBackend"),
    "cuda": (".cuda", "CudaBackend"),
    "ascend": (".ascend", "AscendBackend"),
}


def backend_of(kind: str) -> Backend:
    """A back end for devices of a kind. Raises MappingError for unknown or unusable ones."""
    if kind not in _PLACES:
        raise MappingError(
            f"{kind!r} is no kind of device", next_step=f"use one of: {', '.join(_PLACES)}"
        )
    module, name = _PLACES[kind]
    made: Backend = getattr(import_module(module, __package__), name)()
    return made
