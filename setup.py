"""Adds what pyproject.toml cannot say: optional extensions in C.

`moectl.core._level` splits tokens over copies, `moectl.kernels._paged` is the fast CPU path of the
kernels, `moectl.memory._stream` copies of pages that leave the caches to others,
`moectl.memory.cache._trajectory` the fast loops of the expert cache's policy,
`moectl.placement.copies._copies` the planner of copies. Without a compiler, or without a source,
the install goes on and the reference paths run (`backend_name()` of each room says so).
"""

from pathlib import Path

from setuptools import Extension, setup

# Module -> source, relative to this file: builds run in its folder.
SOURCES = {
    "moectl.core._level": Path("core/_level.c"),
    "moectl.kernels._paged": Path("kernels/_paged.c"),
    "moectl.memory._stream": Path("memory/_stream.c"),
    "moectl.memory.cache._trajectory": Path("memory/cache/_trajectory.c"),
    "moectl.placement.copies._copies": Path("placement/copies/_copies.c"),
}


def extensions() -> list[Extension]:
    """The optional extensions whose sources are here."""
    return [
        Extension(
            name,
            [str(source)],
            depends=[str(header) for header in sorted(source.parent.glob("_*.h"))],
            extra_compile_args=["-O3", "-std=gnu11"],
            optional=True,
        )
        for name, source in SOURCES.items()
        if source.exists()
    ]


setup(ext_modules=extensions())
