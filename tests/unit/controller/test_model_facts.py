"""A checkpoint is looked at as often as its state can matter, and no more."""

import shutil
from pathlib import Path

import pytest

from moectl.cli.train import random_model
from moectl.cli.train.random_model import RandomModel, write_random_model
from moectl.controller import model_facts
from moectl.controller.model_facts import FactsReader, NoFacts
from moectl.core.facts import ModelFacts


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders whose state was asked of the disk."""
    asked: list[Path] = []
    real = model_facts._state_of
    monkeypatch.setattr(
        model_facts, "_state_of", lambda folder: asked.append(folder) or real(folder)
    )
    return asked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in random_model.TOKENIZER_FILES:
        (tokenizer / name).write_text("{}")
    shape = RandomModel(layers=1, hidden=32, experts=4, expert_hidden=16, vocab=64)
    write_random_model(
        tmp_path / "m",
        shape,
        shard_bytes=1 << 30,
        report=lambda done, total: None,
        tokenizer_from=tokenizer,
    )
    return tmp_path / "m"


async def test_ticks_in_a_row_look_once(looks, folder, monkeypatch) -> None:
    monkeypatch.setattr(model_facts, "LOOK_AGAIN_S", 3600.0)
    reader = FactsReader()
    told = [await reader.read_all([str(folder)]) for _ in range(20)]
    assert len(looks) == 1
    assert all(isinstance(each[str(folder)], ModelFacts) for each in told)


async def test_after_a_while_a_checkpoint_that_went_away_is_seen(looks, folder, monkeypatch):
    monkeypatch.setattr(model_facts, "LOOK_AGAIN_S", 0.0)
    reader = FactsReader()
    await reader.read(str(folder))
    shutil.rmtree(folder)
    assert isinstance(await reader.read(str(folder)), NoFacts)


async def test_a_missing_checkpoint_is_there_as_soon_as_it_is_there(looks, folder, monkeypatch):
    monkeypatch.setattr(model_facts, "LOOK_AGAIN_S", 3600.0)
    reader, elsewhere = FactsReader(), folder.with_name("later")
    assert isinstance(await reader.read(str(elsewhere)), NoFacts)
    folder.rename(elsewhere)
    assert isinstance(await reader.read(str(elsewhere)), ModelFacts)
