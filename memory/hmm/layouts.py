"""Which layouts are known on this node, and how much room may they take?

A layout is plain data under a name; its meaning is `memory.layout`'s. The HMM keeps it so that a
new process finds the weights that an old one loaded. Limits hold the table to a size that a process
without swap can always afford; they are checked before anything changes.
"""

import json
from collections.abc import Mapping
from typing import Any

from ...core.errors import MappingError

LAYOUTS_MAX = 4096  # devices times models times epochs in flight, with room
LAYOUT_BYTES_MAX = 256 * 1024 * 1024  # of all layouts as JSON; 16 models of the largest kind known


class Layouts:
    """name -> plain data, with limits."""

    def __init__(self) -> None:
        self._by_name: dict[str, dict[str, Any]] = {}
        self._bytes_of: dict[str, int] = {}

    def check_room(self, layouts: Mapping[str, dict[str, Any]]) -> dict[str, int]:
        """The size of each as JSON. Raises MappingError when keeping them would cross a limit."""
        sizes = {name: len(json.dumps(plain)) for name, plain in layouts.items()}
        count = len(self._by_name.keys() | layouts.keys())
        total = sum((self._bytes_of | sizes).values())
        if layouts and (count > LAYOUTS_MAX or total > LAYOUT_BYTES_MAX):
            raise MappingError(
                f"{count} layouts of {total} bytes; at most {LAYOUTS_MAX} of {LAYOUT_BYTES_MAX} "
                "bytes in all are kept",
                next_step="drop the layouts of retired epochs",
            )
        return sizes

    def put(self, layouts: Mapping[str, dict[str, Any]], sizes: Mapping[str, int]) -> None:
        """Keep layouts whose room was checked."""
        self._by_name.update(layouts)
        self._bytes_of.update(sizes)

    def get(self, name: str) -> dict[str, Any] | None:
        """The data under a name, or None."""
        return self._by_name.get(name)

    def drop(self, name: str) -> bool:
        """Forget a name; False when it was unknown."""
        self._bytes_of.pop(name, None)
        return self._by_name.pop(name, None) is not None

    def names(self, prefix: str) -> list[str]:
        """Names that start with `prefix`, sorted."""
        return sorted(name for name in self._by_name if name.startswith(prefix))
