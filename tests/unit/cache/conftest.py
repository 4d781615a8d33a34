"""Real traces for the tests of this folder, or a stated reason to skip; and small made-up ones."""

from pathlib import Path

import pytest

from moectl.cli.bench.cache import MIXTRAL, QWEN
from moectl.cli.bench.frame import data_folder, require_files
from moectl.core.errors import RefusedError
from moectl.memory.cache.importers import import_trace
from moectl.memory.cache.rows import ImportChoices
from moectl.memory.cache.trace import RoutingTrace


@pytest.fixture(scope="session")
def data() -> Path:
    try:
        folder = data_folder()
        require_files(folder, [MIXTRAL, *QWEN])
    except RefusedError as error:
        pytest.skip(f"real traces are not here: {error.message}")
    return folder


@pytest.fixture(scope="session")
def mixtral(data: Path) -> RoutingTrace:
    return import_trace([data / MIXTRAL], ImportChoices(repair=True))


@pytest.fixture(scope="session")
def qwen(data: Path) -> RoutingTrace:
    return import_trace([data / name for name in QWEN])
