"""Where do model cards, device sheets and fitted constants come from? The shipped YAML and JSON.

The planner takes plain values; this file is the only one that knows where they lie. A person's own
file is given by path and wins over a shipped name.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import CheckpointError, RefusedError
from ..core.spec import catalogue as shipped

if TYPE_CHECKING:
    from ..placement.constants import Constants
    from ..placement.hardware import Hardware
    from ..placement.model_facts import ModelShape

FIT_FILE = "devices/constants.json"


def clusters_folder() -> Path:
    """The folder of shipped data."""
    return shipped.shipped_folder()


def read_yaml(path: Path) -> dict[str, Any]:
    """One YAML object of a file; raises RefusedError."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RefusedError(f"{path}: {error}", next_step="give a readable YAML file") from error
    if not isinstance(data, dict):
        raise RefusedError(f"{path}: not an object", next_step="see clusters/models for examples")
    return data


def cards() -> dict[str, dict[str, Any]]:
    """Every shipped model card by name."""
    found = sorted((clusters_folder() / "models").glob("*.yaml"))
    return {path.stem: read_yaml(path) for path in found}


def find_shape(name: str) -> "tuple[str, ModelShape]":
    """(name, shape) of a card's name, a repository's name, a card, a config.json or its folder."""
    from ..placement.families import read_shape

    path = Path(name).expanduser()
    if path.is_dir():
        path = path / "config.json"
    if path.is_file():
        data = read_config(path)
        return path.parent.name if path.name == "config.json" else path.stem, read_shape(
            data, str(path)
        )
    for card_name, card in cards().items():
        if name.lower() in (card_name, *(r.lower() for r in repositories(card))):
            return card_name, read_shape(card["config"], f"card {card_name}")
    raise CheckpointError(
        f"{name}: neither a folder, a config.json nor a known model",
        next_step=f"known: {', '.join(cards())}",
    )


def read_config(path: Path) -> dict[str, Any]:
    """The fields of a config.json, or of the config of a card."""
    if path.suffix in (".yaml", ".yml"):
        data = read_yaml(path)
        config = data.get("config", data)
        return config if isinstance(config, dict) else data
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}", next_step="give a valid config.json") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: not an object", next_step="give a valid config.json")
    return data


def repositories(card: dict[str, Any]) -> list[str]:
    """Repositories whose checkpoints have a card's shape."""
    return [str(card.get("repository", "")), *(str(r) for r in card.get("sameShape", ()))]


def repository(name: str) -> str:
    """The repository of a card, for engines that load by it; any other name is kept."""
    card = cards().get(name)
    return str(card["repository"]) if card else name


def all_shapes() -> "dict[str, tuple[str, ModelShape]]":
    """Repository or card name -> (card name, shape), for every card that can be read."""
    from ..placement.families import read_shape

    found = {}
    for name, card in cards().items():
        try:
            shape = read_shape(card["config"], f"card {name}")
        except CheckpointError:
            continue  # a card may be incomplete on purpose; asking for it by name says why
        for key in (name, *repositories(card)):
            found[key] = (name, shape)
    return found


def devices() -> "dict[str, Hardware]":
    """Every shipped accelerator by name; the development sheet is asked for by name alone."""
    from ..placement.hardware import parse_hardware

    names = (name for name in shipped.sheet_names() if name != shipped.CPU_SHEET)
    return {name: parse_hardware(shipped.sheet(name), f"{name}.yaml") for name in names}


def find_device(name: str) -> "Hardware":
    """A shipped device by name, or a sheet by path; raises RefusedError."""
    from ..placement.hardware import parse_hardware

    path = Path(name).expanduser()
    if path.is_file():
        data = read_yaml(path)
        return with_sheet_changes(data) if "sheet" in data else parse_hardware(data, str(path))
    return parse_hardware(shipped.sheet(name.lower()), f"{name.lower()}.yaml")


def with_sheet_changes(changes: dict[str, Any]) -> "Hardware":
    """The device of `hardware: {sheet: NAME, ...}` in a Cluster, its figures replaced."""
    from ..placement.hardware import parse_hardware

    rest = {key: value for key, value in changes.items() if key != "sheet"}
    name = str(changes["sheet"])
    return parse_hardware(shipped.with_changes(shipped.sheet(name), rest), f"hardware of {name}")


def constants(path: Path | None = None) -> "Constants":
    """Fitted constants of a file, else the shipped ones, else the priors."""
    from ..placement.constants import Constants, default_constants

    file = path or clusters_folder() / FIT_FILE
    if path is None and not file.is_file():
        return default_constants()
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return Constants({str(k): float(v) for k, v in data["constants"].items()})
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise RefusedError(
            f"{file}: not a fit of the time model ({error})",
            next_step="make one with `moectl calibrate`",
        ) from error
