"""`parallelism: auto` on real processes, and the memory model beside the workers it made."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from embedded_fleet import FREE_PORTS, ROOT, Fleet, fleet_home

pytestmark = pytest.mark.timeout(300)
PAGES = ("shared weights", "experts")


def spec_text(more: str = "") -> str:
    text = (ROOT / "clusters/local.yaml").read_text()
    return text.replace("models/demo ", f"{ROOT}/clusters/models/demo ").replace(
        "  parallelism:\n    experts: 2 ", f"{more}  parallelism: auto\n  #"
    )


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    spec = tmp_path_factory.mktemp("spec") / "auto.yaml"
    spec.write_text(spec_text())
    with fleet_home() as found:
        answer = found.run("up", "-f", str(spec), *FREE_PORTS)
        assert answer.returncode == 0, answer.stderr
        yield found


def model(fleet: Fleet) -> dict[str, Any]:
    (found,) = fleet.json("get", "models")
    return dict(found)


def planned(fleet: Fleet) -> dict[str, Any]:
    conditions = model(fleet)["status"]["conditions"]
    return next(dict(c) for c in conditions if c["type"] == "Planned")


def test_the_model_serves_as_wide_as_the_planner_chose_and_says_why(fleet: Fleet) -> None:
    found = model(fleet)
    assert found["spec"]["parallelism"] == {"experts": "auto"}
    assert found["status"]["desired_width"] == found["status"]["effective_width"] == 4
    assert (planned(fleet)["status"], planned(fleet)["reason"]) == ("True", "HighestRate")
    assert "4 of 4 devices" in planned(fleet)["message"]
    assert "Planned" in fleet.run("describe", "model", "chat").stdout
    assert "4 auto" in fleet.run("get", "models").stdout
    said = fleet.run("chat", "-m", "count the words of a file", "--max-tokens", "12")
    assert said.returncode == 0 and said.stdout.strip()


def test_the_memory_model_agrees_with_real_pages_and_processes(fleet: Fleet) -> None:
    long = "read a file and count its words " * 40
    for _ in range(4):
        assert fleet.run("chat", "-m", long, "--max-tokens", "8").returncode == 0
    check = fleet.json("describe", "memory", "chat")
    errors = {term["term"]: term["error"] for term in check["terms"]}
    assert check["ranks"] == 4 and len(errors) == 6
    assert all(abs(errors[name]) < 0.02 for name in PAGES)
    assert all(abs(error) < 0.02 for name, error in errors.items() if name.startswith("KV"))
    assert abs(errors["exchange region"]) < 0.02
    # The heap of a process is Python's: what it keeps depends on what it did, within a quarter.
    assert abs(errors["activations and runtime"]) < 0.25
    assert abs(errors["all of it"]) < 0.10


def test_a_limit_that_no_width_keeps_ends_with_4_and_the_nearest_change(
    fleet: Fleet, tmp_path: Path
) -> None:
    spec = tmp_path / "slo.yaml"
    spec.write_text(spec_text("  slo: {tpot: 1us}\n"))
    for command in ("apply", "plan"):
        words = ["--dry-run"] if command == "apply" else []
        answer = fleet.run(command, "-f", str(spec), *words)
        assert answer.returncode == 4, answer.stdout + answer.stderr
        assert "needs slo.tpot" in answer.stderr


def test_a_dry_run_shows_what_auto_picks(fleet: Fleet, tmp_path: Path) -> None:
    spec = tmp_path / "auto.yaml"
    spec.write_text(spec_text())
    for words in (("apply", "-f", str(spec), "--dry-run"), ("plan", "-f", str(spec)), ("plan",)):
        answer = fleet.run(*words)
        assert answer.returncode == 0 and "auto picks 4" in answer.stdout, answer.stderr


def test_a_width_set_by_hand_stays_until_auto_takes_it_back(fleet: Fleet) -> None:
    ended = fleet.json("scale", "chat", "--experts", "3")
    assert (ended["phase"], ended["to_width"]) == ("done", 3)
    (note,) = [
        line
        for line in fleet.run("get", "models", "--show-owner").stdout.splitlines()
        if "parallelism.experts" in line
    ]
    assert " 3 " in note and "admin" in note
    time.sleep(2)
    assert model(fleet)["status"]["effective_width"] == 3  # nobody widens it again
    assert fleet.json("scale", "chat", "--experts", "auto")["to_width"] == 4
    same = fleet.run("scale", "chat", "--experts", "4")  # changes hands, moves nothing
    assert same.returncode == 0 and "stays on 4 devices" in same.stdout
    assert model(fleet)["spec"]["parallelism"] == {"experts": 4}
