"""Adds the one thing that pyproject.toml cannot say: an optional extension in C.

`moectl.kernels._paged` is the fast CPU path of the kernels. Without a compiler, or without its
source, the install goes on and the reference path runs (`moectl.kernels.backend_name()` says so).
"""

from pathlib import Path

from setuptools import Extension, setup

SOURCE = Path("kernels/_paged.c")  # relative to this file: builds run in its folder


def extensions() -> list[Extension]:
    """The optional extension, if its source is here."""
    if not SOURCE.exists():
        return []
    return [
        Extension(
            "moectl.kernels._paged",
            [str(SOURCE)],
            depends=[str(header) for header in sorted(Path("kernels").glob("_*.h"))],
            extra_compile_args=["-O3", "-std=gnu11"],
            optional=True,
        )
    ]


setup(ext_modules=extensions())
