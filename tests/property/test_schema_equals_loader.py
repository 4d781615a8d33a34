"""Does the JSON Schema accept exactly the documents whose types the server accepts?

Random documents near valid ones, from a seed. Rules over several fields are the loader's alone (the
schema cannot say them); a document that only they refuse must be valid by the schema. The suite
draws a part; MOECTL_SCHEMA_CASES=10000 is the whole.
"""

import copy
import json
import os
import random
import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from moectl.core.errors import SpecError
from moectl.core.spec import load_text
from moectl.core.spec.load import KINDS
from moectl.core.spec.patterns import count_pattern
from moectl.core.spec.schema import json_schema

CASES = int(os.environ.get("MOECTL_SCHEMA_CASES", "800"))
SEEDS = range(4)

BYTES = ["64MiB", "1.5GiB", "0", "16 KiB", "3MB", "12k", "-1MiB", "MiB", "1e3", "64mib", "1.MiB"]
COUNTS = ["1Mi", "16k", "2.5k", "0.3", "4", "-4", "1 Mi", "1Ti", "4096"]
DURATIONS = ["80ms", "5s", "1m30s", "0s", "5", "1.5 s", "-1s", "1h 5m", "10us", "s", "2d", "1ns"]
WORDS = ["", " ", "chat", "Chat", "a-", "a" * 40, "a" * 41, "auto", "float32", "cpu", "x\n", "é"]
ADDRESSES = ["127.0.0.1", "10.0.0.256", "localhost", "::1", "1.2.3", "01.2.3.4", " 1.2.3.4"]
NUMBERS: list[Any] = [0, 1, 2, 3, 4, 64, 4095, 4096, 4097, 65536, 65537, 2**20, 2**20 + 1, 2**62]
NUMBERS += [-1, 1.5, 2**70, 10_001, 1024, 1025, 65]  # not 1.0: an integer to JSON, not to us
ODD: list[Any] = [None, True, False, [], {}, [1], {"a": 1}, ["a"]]

HARDWARE = {"sheet": "h100", "bandwidthTBs": 3.1, "links": {"node": {"GBs": 300, "latencyUs": 2}}}
BASES: list[dict[str, Any]] = [
    {
        "apiVersion": "moectl.dev/v1",
        "kind": "Model",
        "metadata": {"name": "chat"},
        "spec": {
            "source": {"path": "models/demo"},
            "parallelism": {"experts": 2},
            "memory": {"kvPerDevice": "8MiB"},
            "engine": {
                "maxBatchTokens": 128,
                "maxRequests": "64",
                "prefillChunk": 64,
                "kvBlockTokens": 16,
                "maxContext": None,
                "dtype": "auto",
                "threads": 1,
            },
            "precision": "standard",
            "slo": {"ttft": "80ms", "tpot": None},
            "workload": {"inputTokens": "1Ki", "outputTokens": 64, "requestsPerS": 2.5},
            "replayDeadline": "60s",
        },
    },
    {
        "apiVersion": "moectl.dev/v1",
        "kind": "Cluster",
        "metadata": {"name": "local"},
        "spec": {
            "nodes": [
                {
                    "name": "n1",
                    "address": "127.0.0.11",
                    "devices": [{"id": "d0", "kind": "cpu", "hbm": "96MiB", "pageSize": "16KiB"}],
                },
                {
                    "name": "n2",
                    "devices": [{"id": "d0", "hbm": "80GiB", "hardware": HARDWARE}],
                },
            ],
            "leaseTtl": "5s",
        },
    },
]


def python_schema(value: Any) -> Any:
    """Patterns are ECMA's, where `$` is the very end; Python calls that `\\Z`."""
    if isinstance(value, list):
        return [python_schema(item) for item in value]
    if not isinstance(value, dict):
        return value
    made = {key: python_schema(item) for key, item in value.items()}
    if isinstance(made.get("pattern"), str) and made["pattern"].endswith("$"):
        made["pattern"] = made["pattern"][:-1] + r"\Z"
    return made


def any_value(rng: random.Random) -> Any:
    pools: list[list[Any]] = [BYTES, COUNTS, DURATIONS, WORDS, ADDRESSES, NUMBERS, NUMBERS, ODD]
    return copy.deepcopy(rng.choice(rng.choice(pools)))


def spots(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inner in items:
        found.append((value, key))
        if isinstance(inner, (dict, list)):
            found += spots(inner)
    return found


def mutate(document: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    made = copy.deepcopy(document)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        container, key = rng.choice(spots(made))
        act = rng.random()
        if act < 0.70:
            container[key] = any_value(rng)
        elif act < 0.85:
            del container[key]
        elif act < 0.95 and isinstance(container, dict):
            container[rng.choice(["extra", "max_requests", "experts", "name"])] = any_value(rng)
        elif isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
    return made


def verdicts(document: dict[str, Any], validator: Draft202012Validator) -> tuple[bool, bool, str]:
    """Schema, loader (less the rules over several fields), and what the loader said."""
    by_schema = validator.is_valid(document)
    try:
        load_text(json.dumps(document), "case.yaml")
    except SpecError as error:
        return by_schema, _only_rules(document, error), str(error)
    return by_schema, True, ""


def _only_rules(document: dict[str, Any], error: SpecError) -> bool:
    kind = KINDS.get(document.get("kind")) if isinstance(document.get("kind"), str) else None
    if kind is None or not isinstance(document.get("spec"), dict):
        return False
    rules = {finding.reason for finding in kind.check(document["spec"])}
    return {mistake.reason for mistake in error.mistakes} <= rules


@pytest.mark.parametrize("seed", SEEDS)
def test_schema_and_server_agree_on_every_document(seed: int) -> None:
    rng = random.Random(seed)
    validator = Draft202012Validator(python_schema(json_schema()))
    accepted, disagreed = 0, []
    for _ in range(CASES // len(SEEDS)):
        document = mutate(rng.choice(BASES), rng)
        schema, server, said = verdicts(document, validator)
        accepted += server
        if schema != server:
            wrong = [e.message for e in validator.iter_errors(document)]
            disagreed.append((document, schema, said or wrong))
    share = accepted / (CASES // len(SEEDS))
    assert 0.05 < share < 0.95  # both sides of the border were visited
    assert not disagreed, f"{len(disagreed)} of {CASES // len(SEEDS)}: {disagreed[:3]}"


def test_the_pattern_of_a_count_matches_exactly_the_numbers_between_its_bounds() -> None:
    for least, most in ((1, 65536), (4, 2**20), (1, 9), (17, 1234), (100, 100)):
        pattern = re.compile(count_pattern(least, most)[:-1] + r"\Z")
        for number in {*range(1500), most - 1, most, most + 1, least - 1, 65535, 99_999}:
            assert bool(pattern.match(str(number))) is (least <= number <= most), (number, most)
            for unit, size in (("k", 1000), ("Ki", 1024), ("Mi", 2**20)):
                inside = least <= number * size <= most
                assert bool(pattern.match(f"{number}{unit}")) is inside, (number, unit)
