"""The text that the demo model learns from: Python's own standard library, found on every machine.

Pure reading: nothing is downloaded, nothing is written. The order of files is sorted by path, so
the corpus is a function of the Python version alone (which `docs/demo-model.md` records).
"""

import sysconfig
from pathlib import Path

# Folders that are not the library's own prose: tests, generated tables and bundled wheels.
EXCLUDED = frozenset(
    {
        "test",
        "tests",
        "idle_test",
        "site-packages",
        "lib2to3",
        "__pycache__",
        "ensurepip",
        "encodings",
    }
)
FILE_BYTES_MAX = 400_000  # larger files of the library are generated tables


def library_files(root: Path | None = None) -> list[Path]:
    """Every `.py` file of the standard library that counts as prose, sorted by path."""
    base = root or Path(sysconfig.get_paths()["stdlib"])
    files = (
        path
        for path in base.rglob("*.py")
        if not EXCLUDED.intersection(path.relative_to(base).parts)
        and path.stat().st_size <= FILE_BYTES_MAX
    )
    return sorted(files, key=lambda path: path.relative_to(base).as_posix())


def read_documents(root: Path | None = None) -> list[str]:
    """The library's files as text; files that are not UTF-8 are left out.

    Raises:  ValueError when no file is found (a Python without its library sources).
    """
    documents = []
    for path in library_files(root):
        try:
            documents.append(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
    if not documents:
        raise ValueError("no Python sources found beside this interpreter")
    return documents
