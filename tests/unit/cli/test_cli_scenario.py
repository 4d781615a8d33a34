"""Which widths the demo visits, what counts as whole, and how its traffic reads answers."""

import dataclasses
import json

import pytest

from moectl.cli.demo.metrics import Trace
from moectl.cli.demo.prompts import CONVERSATIONS, turns_of
from moectl.cli.demo.scenario import widths_of
from moectl.cli.demo.traffic import Speaker, _Answer
from moectl.cli.gateway_client import ChatOptions, chat_body, gateway_error
from moectl.cli.tui.sample import sample_fleet
from moectl.core.errors import AuthError, MoectlError, RefusedError
from moectl.core.transitions import WorkerState


@pytest.mark.parametrize(
    "start,devices,widths",
    [
        (2, 4, (4, 3, 2)),
        (4, 8, (8, 7, 4)),
        (2, 2, (1, 2)),
        (1, 1, ()),
        (1, 2, (2, 1)),
        (3, 4, (4, 3)),
    ],
)
def test_the_demo_visits_widths_that_change_something(
    start: int, devices: int, widths: tuple[int, ...]
) -> None:
    assert widths_of(start, devices) == widths


def test_a_model_is_whole_when_every_rank_serves_its_epoch() -> None:
    model = sample_fleet(4).models[0]
    assert model.is_whole
    lost = dataclasses.replace(model.workers[0], state=WorkerState.LOST)
    late = dataclasses.replace(model.workers[0], epoch=1)
    for worker in (lost, late):
        broken = dataclasses.replace(model, workers=(worker, *model.workers[1:]))
        assert broken.is_ready
        assert not broken.is_whole
    assert not dataclasses.replace(model, workers=()).is_whole


def test_conversations_beyond_the_list_differ_from_it() -> None:
    count = len(CONVERSATIONS)
    assert len({turns_of(index) for index in range(3 * count)}) == 3 * count


def chunk(text: str | None, finish: str | None = None, **extra: object) -> str:
    delta = {} if text is None else {"content": text}
    return json.dumps({"choices": [{"delta": delta, "finish_reason": finish}], **extra})


def read(*pieces: str) -> tuple[Trace, str]:
    answer = _Answer(Speaker(0, ChatOptions()), 0.0)
    for index, piece in enumerate(pieces):
        if answer.take(piece, float(index)):
            break
    return answer.trace(answer.problem()), answer.problem()


def test_an_answer_is_its_pieces_with_their_times() -> None:
    usage = json.dumps({"choices": [], "usage": {"completion_tokens": 2}, "moectl": {"replays": 1}})
    trace, problem = read(chunk(""), chunk("a"), chunk("b"), chunk(None, "stop"), usage, "[DONE]")
    assert not problem
    assert (trace.text, trace.arrivals, trace.replays) == ("ab", (1.0, 2.0), 1)


def test_an_answer_that_was_cut_or_carries_an_error_has_failed() -> None:
    assert "finish reason" in read(chunk("a"), "[DONE]")[1]
    assert "no worker" in read(chunk("a"), json.dumps({"error": {"message": "no worker"}}))[1]


def test_requests_ask_for_usage_and_carry_a_seed_only_when_given() -> None:
    body = chat_body("chat", [{"role": "user", "content": "x"}], ChatOptions(seed=3))
    assert body["stream_options"] == {"include_usage": True}
    assert body["seed"] == 3
    assert "seed" not in chat_body("chat", [], ChatOptions())


@pytest.mark.parametrize(
    "status,cls", [(401, AuthError), (404, RefusedError), (400, RefusedError), (503, MoectlError)]
)
def test_errors_of_the_gateway_become_ours(status: int, cls: type[MoectlError]) -> None:
    error = gateway_error(status, {"error": {"message": "because"}})
    assert type(error) is cls
    assert "because" in error.message
