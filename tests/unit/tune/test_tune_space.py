"""What may be tried: a space that `moectl apply` would refuse is refused before anything runs."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from moectl.cli.main import build_app
from moectl.cli.tune.asking import Load, find_limits, parse_load
from moectl.cli.tune.space import build_space, with_settings
from moectl.cli.tune.workload import Shape, check_fits, digest, draw, read_jsonl
from moectl.core.errors import RefusedError, UsageError
from moectl.core.spec import model_spec_from_plain, to_plain

SPEC = to_plain(
    model_spec_from_plain({"source": {"path": "models/demo"}, "parallelism": {"experts": 2}})
)


def test_every_combination_that_is_handed_out_is_a_spec_that_loads() -> None:
    space = build_space(SPEC, ["threads=1,2"], cores=2)
    legal = list(space.legal())
    assert len(legal) > 1000
    for settings in legal[:: len(legal) // 50]:
        model_spec_from_plain(with_settings(SPEC, settings))
    assert space.present in legal
    assert all(one["prefillChunk"] <= one["maxBatchTokens"] for one in legal)


def test_the_present_settings_are_always_among_the_choices() -> None:
    space = build_space(SPEC, ["prefillChunk=32,96", "maxRequests=7"], cores=1)
    assert space.choices["prefillChunk"] == (32, 64, 96)
    assert space.choices["maxRequests"] == (7, 64)
    assert space.settings(space.indexes(space.present)) == space.present


@pytest.mark.parametrize(
    ("asked", "error", "text"),
    [
        ("speed=9", UsageError, "prefillChunk, maxBatchTokens"),
        ("prefillChunk", UsageError, "not SETTING=VALUE"),
        ("prefillChunk=many", UsageError, "prefillChunk"),
        ("prefixCache=2", UsageError, "neither true nor false"),
        ("kvBlockTokens=4096", RefusedError, "less than or equal to 1024"),
        ("threads=0", RefusedError, "greater than or equal to 1"),
    ],
)
def test_a_bad_space_is_refused_naming_what_is_wrong(asked, error, text) -> None:
    with pytest.raises(error) as caught:
        build_space(SPEC, [asked], cores=2)
    assert text in f"{caught.value.message} {caught.value.next_step}"


def test_a_space_without_a_legal_combination_says_why() -> None:
    fixed = [
        f"{name}={str(SPEC['engine'][name]).lower()}"
        for name in ("kvBlockTokens", "maxRequests", "prefixCache", "threads", "maxBatchTokens")
    ]
    with pytest.raises(RefusedError, match="does not fit a batch of 128"):
        build_space(SPEC, [*fixed, "prefillChunk=512"], cores=2)


def test_a_reproducible_model_is_never_tried_with_more_threads() -> None:
    space = build_space({**SPEC, "precision": "reproducible"}, [], cores=8)
    assert space.choices["threads"] == (1,)
    assert build_space(SPEC, [], cores=3).choices["threads"] == (1, 2)


def test_a_seed_draws_the_same_workload_again() -> None:
    shape = Shape(5, (3, 9), (2, 4), rate=10.0, shared=4, seed=3)
    asks = draw(shape, 100)
    assert digest(asks) == digest(draw(shape, 100)) != digest(draw(Shape(5, seed=4), 100))
    assert {ask.prompt[:4] for ask in asks} == {asks[0].prompt[:4]}
    assert all(7 <= len(ask.prompt) <= 13 and 2 <= ask.new_tokens <= 4 for ask in asks)
    assert [ask.at_s for ask in asks] == sorted(ask.at_s for ask in asks)


def test_files_of_requests_are_read_in_the_order_of_their_times(tmp_path: Path) -> None:
    file = tmp_path / "load.jsonl"
    file.write_text(
        '{"input_length": 6, "output_length": 3, "timestamp": 2500}\n\n'
        '{"prompt": [5, 6], "max_tokens": 2, "at_s": 1.0}\n'
        '{"prompt": "ab", "max_tokens": 1, "at_s": 3}\n'
    )
    asks = read_jsonl(file, 50, 1, lambda text: [ord(letter) - 90 for letter in text])
    assert [(len(ask.prompt), ask.new_tokens, ask.at_s) for ask in asks] == [
        (2, 2, 0.0),
        (6, 3, 1.5),
        (2, 1, 2.0),
    ]
    assert asks[2].prompt == (7, 8)


@pytest.mark.parametrize("line", ["{", "[]", '{"prompt": [99], "max_tokens": 1}', '{"prompt": []}'])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "load.jsonl"
    file.write_text('{"prompt": [1], "max_tokens": 1}\n' + line + "\n")
    with pytest.raises(RefusedError, match=r"load\.jsonl:2"):
        read_jsonl(file, 50, 1, lambda _: [])


def test_a_request_longer_than_the_context_is_refused_before_anything_runs() -> None:
    with pytest.raises(RefusedError, match="request 1 of the workload needs") as caught:
        check_fits(draw(Shape(1, (60, 60), (9, 9)), 10), 64)
    there = {
        word for each in get_command(build_app()).commands["tune"].params for word in each.opts
    }
    assert set(re.findall(r"--[a-z]+", caught.value.next_step)) == {"--load"} <= there
    keys = re.findall(r"--load ([a-z]+)=", caught.value.next_step)
    assert parse_load([f"{key}=4:8" for key in keys], 1).shape.output_tokens == (4, 8)


@pytest.mark.parametrize(
    "part", ["x=1", "requests", "requests=0", "rate=-1", "input=9:3", "shared=a", "output=0"]
)
def test_a_wrong_workload_option_is_a_usage_error(part: str) -> None:
    with pytest.raises(UsageError):
        parse_load([part], 1)


def test_workload_options_become_a_shape_and_limits_come_from_the_spec() -> None:
    load = parse_load(["requests=9", "input=4:8", "rate=2.5"], 11)
    assert load == Load(Shape(9, (4, 8), (16, 64), 2.5, 0, 11))
    spec = {"slo": {"ttft": "200ms", "tpot": None}}
    assert (find_limits("", spec).ttft_s, find_limits("", spec).itl_s) == (0.2, None)
    assert find_limits("itl=20ms", spec).ttft_s is None
    with pytest.raises(UsageError):
        find_limits("speed=3s", spec)
