"""One budget: what a model claims is kept for it, from PREPARE on, and no longer than it lives."""

import pytest

from moectl.core.errors import MappingError, PoolExhaustedError
from moectl.memory.arbiter import Claim, room

from .conftest import PAGES, RunningHmm, eventually, start_hmm

CHAT = {"chat/experts": (100, 0.0), "chat/kv": (50, 1.0)}


def claims(client, device: str = "d0") -> dict[str, list[float]]:
    return next(each["claims"] for each in client.usage() if each["device"] == device)


def test_what_is_asked_for_counts_at_once_and_ends_with_the_connection(hmm: RunningHmm) -> None:
    worker, other = hmm.client("worker"), hmm.client("other")
    worker.ask_claims("d0", CHAT)
    assert claims(other) == {"chat/experts": [100, 0.0], "chat/kv": [50, 1.0]}
    with pytest.raises(PoolExhaustedError) as refused:
        other.reserve("d0", PAGES - 149, "code/kv")
    assert refused.value.free_pages == PAGES - 150
    assert refused.value.holders == {
        "guaranteed to chat/experts": 100,
        "guaranteed to chat/kv": 50,
    }
    other.reserve("d0", PAGES - 150, "code/kv").forfeit()
    worker.close()
    assert eventually(lambda: claims(other) == {})
    other.reserve("d0", PAGES, "code/kv").forfeit()


def test_what_is_kept_stays_and_replaces_what_the_model_had(hmm: RunningHmm) -> None:
    client = hmm.client()
    client.set_claims("d0", {"chat/old": (7, 1.0), "code/kv": (9, 1.0)})
    worker = hmm.client("worker")
    worker.ask_claims("d0", CHAT)
    worker.keep_claims("d0")
    worker.close()
    expected = {"chat/experts": [100, 0.0], "chat/kv": [50, 1.0], "code/kv": [9, 1.0]}
    assert claims(client) == expected
    client.set_claims("d0", {}, "chat")
    assert claims(client) == {"code/kv": [9, 1.0]}
    with pytest.raises(MappingError, match="nothing was claimed"):
        client.keep_claims("d0")


def test_a_second_model_whose_guarantees_do_not_fit_is_told_who_has_them(hmm: RunningHmm) -> None:
    first, second = hmm.client("first"), hmm.client("second")
    first.ask_claims("d0", CHAT)
    with pytest.raises(PoolExhaustedError, match="guaranteed to chat/experts 100") as refused:
        second.ask_claims("d0", {"code/kv": (PAGES - 149, 1.0)})
    assert (refused.value.needed_pages, refused.value.free_pages) == (PAGES - 149, PAGES - 150)
    assert claims(second) == claims(first)
    second.ask_claims("d0", {"code/kv": (PAGES - 150, 1.0)})


def test_pages_that_kv_gives_back_for_experts_to_come_cannot_be_taken_in_between(
    hmm: RunningHmm,
) -> None:
    chat, code = hmm.client("chat"), hmm.client("code")
    grown = chat.reserve("d0", PAGES, "chat/kv")
    grown.commit()
    chat.ask_claims("d0", {"chat/experts": (60, 0.0), "chat/kv": (20, 1.0)})
    chat.free("d0", grown.pages[-60:], "chat/kv")
    with pytest.raises(PoolExhaustedError, match="chat/kv above its share"):
        code.reserve("d0", 1, "code/kv")
    assert code.room("d0", "code/kv") == 0
    chat.reserve("d0", 60, "chat/experts").commit()


def test_a_refusal_remembers_whose_pages_are_wanted_once(hmm: RunningHmm) -> None:
    chat, code = hmm.client("chat"), hmm.client("code")
    chat.set_claims("d0", {"chat/kv": (100, 1.0)})
    grown = chat.reserve("d0", 200, "chat/kv")
    grown.commit()
    with pytest.raises(PoolExhaustedError, match="chat/kv above its share 24"):
        code.ask_claims("d0", {"code/experts": (40, 0.0), "code/kv": (40, 1.0)})
    assert chat.wanted("d0") == {"chat/kv": 24}  # 80 are needed, 56 are free
    assert chat.wanted("d0") == {}
    chat.free("d0", grown.pages[-24:], "chat/kv")
    code.ask_claims("d0", {"code/experts": (40, 0.0), "code/kv": (40, 1.0)})
    with pytest.raises(PoolExhaustedError, match="guaranteed to code/experts 40"):
        chat.reserve("d0", 1, "chat/kv")


def test_claims_survive_a_kill_when_they_were_kept_and_a_handover_in_any_case(private_dir) -> None:
    old = start_hmm(private_dir)
    client = old.client()
    client.set_claims("d0", {"code/kv": (9, 1.0)})
    client.ask_claims("d0", CHAT)
    client.device("d0")
    new = start_hmm(private_dir, ["--take-over"])
    assert old.process.wait(10) == 0
    expected = {"chat/experts": [100, 0.0], "chat/kv": [50, 1.0], "code/kv": [9, 1.0]}
    assert claims(client) == expected
    client.keep_claims("d0")
    client.reserve("d0", 1, "chat/kv").commit()
    fd = client.device("d0").fd
    new.process.kill()
    new.process.wait(10)
    again = start_hmm(private_dir, waits=False)
    heir = again.client("heir")
    heir.offer("d0", fd)
    assert eventually(lambda: not heir.recovery()["waiting"])
    assert claims(heir) == expected
    client.close()
    again.close()


def test_room_is_what_is_left_over_and_shared_by_weight() -> None:
    claims = {
        "a/kv": Claim(10, 1.0),
        "a/experts": Claim(30, 0.0),
        "a/adapters": Claim(0, 1.0),
        "b/kv": Claim(10, 3.0),
        "b/experts": Claim(20, 0.0),
    }
    used = {"a/kv": 10, "a/experts": 20}
    assert room("a/kv", 70, used, claims) == 30  # 10 + 20 + 10 are kept for experts and for b
    used |= {"b/kv": 10, "b/experts": 20}
    assert room("a/kv", 40, used, claims) == 7  # the 30 that are over go 1 : 3
    assert room("b/kv", 40, used, claims) == 23
    assert room("a/kv", 40, used | {"a/kv": 40}, claims) == 0  # above its share already
    assert room("c/kv", 40, {"x": 60}, {}) == 40
