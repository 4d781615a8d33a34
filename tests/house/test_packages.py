"""What is installed is what is in the folders: setuptools cannot find packages in this layout."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

# Files that the product reads when it runs; a wheel without them starts and then fails.
READ_AT_RUN_TIME = {".tcss", ".yaml", ".json", ".jinja", ".safetensors", ".c", ".h"}


@pytest.fixture(scope="module")
def setuptools_settings(root: Path) -> dict[str, Any]:
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    found: dict[str, Any] = settings["tool"]["setuptools"]
    return found


def test_the_package_list_equals_the_folders_with_an_init_file(
    root: Path, product: list[Any], setuptools_settings: dict[str, Any]
) -> None:
    folders = {s.module for s in product if s.path.endswith("__init__.py")}
    listed = setuptools_settings["packages"]
    assert sorted({"moectl", *(f"moectl.{folder}" for folder in folders)}) == sorted(listed)


def test_every_python_file_is_in_a_package(product: list[Any]) -> None:
    packages = {s.path.removesuffix("/__init__.py") for s in product if "__init__" in s.path}
    assert [s.path for s in product if s.path.rpartition("/")[0] not in packages] == []


def test_files_that_are_read_at_run_time_are_in_the_wheel(
    root: Path, setuptools_settings: dict[str, Any]
) -> None:
    packed: set[Path] = set()
    rooms = set()
    for package, patterns in setuptools_settings["package-data"].items():
        folder = root / Path(*package.split(".")[1:])
        for pattern in patterns:
            packed |= set(folder.glob(pattern))
    for package in setuptools_settings["packages"]:
        rooms |= {package.split(".")[1]} if "." in package else set()
    needed = {
        path
        for room in rooms
        for path in (root / room).rglob("*")
        if path.suffix in READ_AT_RUN_TIME and "partial" not in path.name
    }
    assert sorted(str(path) for path in needed - packed) == []


def test_only_package_files_stand_in_the_root(root: Path) -> None:
    assert {path.name for path in root.glob("*.py")} == {"__init__.py", "setup.py"}
