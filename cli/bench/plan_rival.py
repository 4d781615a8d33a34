"""AIConfigurator on the same rows, where it is installed (`pip install 'moectl[bench]'`).

It answers from measured kernel tables of its own, by name of model, device and engine. Configs that
it would fetch from the network are written from our cards instead; what it refuses is counted with
its reason. Every answer is compared with ours for the same row, so neither gains from easy rows.
"""

import importlib.util
import json
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...placement.rows import Row

PACKAGE = "aiconfigurator"
SYSTEMS = {name: f"{name}_sxm" for name in ("a100", "h100", "h200", "b200", "b300")}
WORDS_MAX = 70
Answer = tuple[float, float]  # TPOT, TTFT in seconds


def is_installed() -> bool:
    """Whether the package can be imported; it is never imported to find out."""
    return importlib.util.find_spec(PACKAGE) is not None


def answers(
    rows: "Iterable[Row]", report: Callable[[str, str], None], left_s: Callable[[], float]
) -> tuple[dict[int, Answer], Counter[str]]:
    """(line -> its answer, reason -> rows without one) of as many rows as the time allows."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    ordered = sorted(rows, key=lambda row: (row.device, row.engine, row.line))
    found: dict[int, Answer] = {}
    refused: Counter[str] = Counter()
    quiet = logging.root.manager.disable
    with TemporaryDirectory(prefix="moectl-rival-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ask = _asker(Path(folder))
        logging.disable(logging.CRITICAL)
        try:
            for count, row in enumerate(ordered):
                if left_s() <= 0:
                    refused["no time left"] += len(ordered) - count
                    break
                if count % 100 == 0:
                    report("rival", f"{count} of {len(ordered)} rows")
                try:
                    found[row.line] = ask(row)
                except Exception as error:  # whatever a foreign package raises is its answer
                    refused[_reason(error)] += 1
        finally:
            logging.disable(quiet)
    return found, refused


def _asker(folder: Path) -> "Callable[[Row], Answer]":
    from aiconfigurator.cli.api import cli_estimate
    from aiconfigurator_core.sdk.perf_database import get_latest_database_version

    from .. import catalogue

    configs: dict[str, str] = {}
    versions: dict[tuple[str, str], str] = {}  # resolving one reads hundreds of files

    def config_of(name: str) -> str:
        if name not in configs:
            path = folder / name
            path.mkdir()
            card: dict[str, Any] = catalogue.cards()[name]
            (path / "config.json").write_text(json.dumps(card["config"]), encoding="utf-8")
            configs[name] = str(path)
        return configs[name]

    def ask(row: "Row") -> Answer:
        system, layout = SYSTEMS.get(row.device, row.device), row.layout
        key = (system, row.engine)
        if key not in versions:
            versions[key] = get_latest_database_version(*key)
        words: dict[str, Any] = {
            "backend_name": row.engine,
            "backend_version": versions[key],
            "isl": row.input_tokens,
            "osl": row.output_tokens,
            "batch_size": row.batch,
            "tp_size": layout.tp,
            "attention_dp_size": layout.dp,
        }
        if row.shape.is_moe:
            words |= {"moe_tp_size": layout.etp, "moe_ep_size": layout.ep}
        try:
            answer = cli_estimate(catalogue.repository(row.model), system, **words)
        except Exception as error:
            if "download" not in type(error).__name__.lower():
                raise
            answer = cli_estimate(config_of(row.model), system, **words)
        return float(answer.tpot) / 1e3, float(answer.ttft) / 1e3

    return ask


def _reason(error: Exception) -> str:
    """The kind of an error with its first words, without paths and numbers of a single row."""
    words = str(error).split("\n")[0].split("{")[0].split("'")[0]
    return f"{type(error).__name__}: {words[:WORDS_MAX].strip()}"
