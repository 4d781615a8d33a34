"""Fields of a `config.json` by name, with refusals that say which file lacks which field."""

from collections.abc import Mapping
from typing import Any

from ...core.errors import CheckpointError


class Fields:
    """Typed access to a parsed config; every getter raises CheckpointError on a wrong value."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._config = config
        self.where = where

    def integer(self, *names: str, default: int | None = None) -> int:
        """The first of `names` that is there, a positive integer, else the default."""
        for name in names:
            value = self._config.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise CheckpointError(f"{self.where}: {name} is {value!r}, not a positive integer")
            return value
        if default is None:
            raise CheckpointError(
                f"{self.where}: {' or '.join(names)} is missing",
                next_step="use the config.json of the checkpoint itself, or complete the card",
            )
        return default

    def count(self, name: str, default: int = 0) -> int:
        """Like `integer`, but 0 and null are allowed and mean none."""
        value = self._config.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise CheckpointError(f"{self.where}: {name} is {value!r}, not a count")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean."""
        value = self._config.get(name)
        if value is not None and not isinstance(value, bool):
            raise CheckpointError(f"{self.where}: {name} is {value!r}, not true or false")
        return default if value is None else value

    def items(self, name: str) -> list[Any] | None:
        """A list, or None when it is not there."""
        value = self._config.get(name)
        if value is not None and not isinstance(value, list):
            raise CheckpointError(f"{self.where}: {name} is {value!r}, not a list")
        return value

    def table(self, name: str) -> dict[str, Any]:
        """An object, or an empty one when it is not there."""
        value = self._config.get(name)
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f"{self.where}: {name} is {value!r}, not an object")
        return value or {}

    def has(self, name: str) -> bool:
        """Whether a field is there and not null."""
        return self._config.get(name) is not None
