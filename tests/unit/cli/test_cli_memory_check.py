"""`moectl describe memory` reads processes of this machine for the fleet of this home alone."""

import dataclasses
import os

import pytest

from moectl.cli import contexts, memory_check
from moectl.cli.contexts import Context, Contexts
from moectl.cli.tui.sample import sample_fleet
from moectl.core.paths import Home


class Pages:
    """A controller's answer about a device that holds nothing."""

    def get(self, path: str) -> dict:
        return {"spans": [], "page_bytes": 4096}


@pytest.mark.parametrize("chosen", ["local", "prod"])
def test_a_process_of_this_machine_is_never_taken_for_another_fleets_worker(
    tmp_path, monkeypatch, chosen: str
) -> None:
    monkeypatch.setenv("MOECTL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(contexts.VARIABLE, "")
    prod = Context("http://127.0.0.1:8470", "/none/token")  # a forwarded port
    contexts.save(Home.from_environment(), Contexts(chosen, {"prod": prod}))
    fleet = sample_fleet(2)
    model = fleet.models[0]
    workers = tuple(dataclasses.replace(each, pid=os.getpid()) for each in model.workers)
    model = dataclasses.replace(
        model, workers=workers, spec={**model.spec, "engine": {"kvBlockTokens": 16}}
    )
    nodes = tuple(dataclasses.replace(node, address="127.0.0.1") for node in fleet.nodes)
    fleet = dataclasses.replace(fleet, nodes=nodes)
    measured = memory_check._measured(Pages(), fleet, model)
    assert len(measured) == 2
    if chosen == "local":
        assert all(each.private > 0 for each in measured)
    else:
        assert all(each.private is None for each in measured)
