"""Are the compiled loops of the copy planner there?

The extension is optional: without a compiler the Python reference runs, some hundred times slower
and with the same placements. An extension left over from another version is not used.
"""

from types import ModuleType

extension: ModuleType | None
try:
    from . import _copies as extension  # type: ignore[attr-defined, no-redef, unused-ignore]
except ImportError:
    extension = None

INTERFACE = 1  # as in _copies.c

if extension is not None and getattr(extension, "INTERFACE", 0) != INTERFACE:
    extension = None


def backend_name() -> str:
    """ "native" when the compiled loops are there, else "reference"."""
    return "native" if extension is not None else "reference"
