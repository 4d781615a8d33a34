"""Are the compiled loops of the trajectory memory there?

The extension is optional: without a compiler the numpy reference runs, slower and with the same
decisions up to rounding. An extension left over from another version is not used.
"""

from types import ModuleType

extension: ModuleType | None
try:
    from . import _trajectory as extension  # type: ignore[attr-defined, no-redef, unused-ignore]
except ImportError:
    extension = None

INTERFACE = 1  # as in _trajectory.c

if extension is not None and getattr(extension, "INTERFACE", 0) != INTERFACE:
    extension = None


def backend_name() -> str:
    """ "native" when the compiled loops are there, else "reference"."""
    return "native" if extension is not None else "reference"
