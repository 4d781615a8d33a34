"""Where the YAML specs and the demo model lie, in a checkout and in an installed wheel."""

from pathlib import Path


def folder() -> Path:
    """The folder of this file; a wheel is never a zip here (weights are mapped from it)."""
    return Path(__file__).resolve().parent
