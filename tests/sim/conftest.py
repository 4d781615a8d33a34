"""Makes the parts of the simulator importable by the tests beside it, and its parsing fast."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def shared_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    from sim_parse import parse

    monkeypatch.setattr("moectl.controller.observe.from_json", parse)
