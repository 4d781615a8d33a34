"""`precision: reproducible` is refused, with the reason, where rows do not keep their bits."""

import pytest

from moectl.agents.engine.attach import require_stable_rows
from moectl.core.errors import WorkerError


class Unstable:
    def __init__(self, names: list[str]) -> None:
        self._names = names

    def unstable_weights(self) -> list[str]:
        return self._names


def test_a_machine_with_stable_rows_is_taken():
    require_stable_rows(Unstable([]), "chat")


def test_a_machine_with_unstable_rows_is_refused_naming_the_weights():
    names = [f"model.layers.{layer}.mlp.gate.weight" for layer in range(9)]
    with pytest.raises(WorkerError, match=r"layers\.0\.mlp\.gate.*9 weights"):
        require_stable_rows(Unstable(names), "chat")
