"""A refusal of a page pool names all holders; a tenant reads the names of its own models only."""

import dataclasses

import pytest

from moectl.controller import masking
from moectl.controller.tenancy import visible
from moectl.core.errors import PoolExhaustedError
from moectl.core.plan import DeviceId, Phase
from moectl.core.records import (
    Condition,
    ConditionStatus,
    EventRecord,
    ModelStatus,
    TokenRecord,
    to_json,
)

HOLDERS = {
    "chat/kv": 12,
    "law/experts": 240,
    "guaranteed to law/kv": 30,
    "code/secret-client/adapters": 4,
    "gone/kv above its share": 8,
}
REFUSAL = str(PoolExhaustedError("n1/d0", 64, 3, HOLDERS))


@pytest.fixture
def refused(fleet):
    """`chat`, whose change the pool refused with the names of other tenants' models."""
    fleet.declare(2)
    fleet.declare(1, name="law")
    law = fleet.parts["specs"][("Model", "law")]
    record = dataclasses.replace(law.value, tenant="b")
    fleet.parts["specs"][("Model", "law")] = dataclasses.replace(law, value=record)
    fleet.place(1)
    device = DeviceId("n1", "d0")
    workers = fleet.parts["workers"]["chat"]
    workers[device] = dataclasses.replace(workers[device], message=REFUSAL)
    running = fleet.begin(2)
    told = dataclasses.replace(running, reason=f"n1: {REFUSAL}")
    fleet.parts["transitions"]["op-2"] = fleet.seen(told)
    fleet.answer("n1", Phase.PREPARE, ok=False)
    acks = fleet.parts["acks"]["op-2"]
    acks["n1"] = dataclasses.replace(acks["n1"], error=REFUSAL)
    condition = Condition("Progressing", ConditionStatus.FALSE, "Forfeited", REFUSAL, 1, 0.0)
    fleet.tell_status(ModelStatus("chat", 1, 2, 2, 1, 1, 1, 1, (condition,)))
    event = EventRecord("e1", 0.0, "warning", "model/chat", "Forfeited", REFUSAL)
    fleet.parts["events"]["e1"] = event
    return fleet.snapshot


def test_a_tenant_reads_its_own_holders_and_of_others_only_that_they_hold(refused) -> None:
    seen = visible(refused, TokenRecord("a", "operator", "default", 0.0))
    texts = [
        seen.transitions["op-2"].value.reason,
        seen.acks["op-2"]["n1"].error,
        seen.workers["chat"][DeviceId("n1", "d0")].message,
        seen.status["chat"].value.conditions[0].message,
        seen.events["e1"].message,
    ]
    for text in texts:
        assert "chat/kv 12" in text and "another tenant 240" in text
        assert "guaranteed to another tenant 30" in text
        assert not any(name in text for name in ("law", "code", "secret-client", "gone"))
    everything = "".join(to_json(each.value) for each in seen.transitions.values())
    assert "law/" not in everything


def test_an_admin_reads_all_holders(refused) -> None:
    seen = visible(refused, TokenRecord("root", "admin", "default", 0.0))
    assert "law/experts 240" in seen.transitions["op-2"].value.reason


@pytest.mark.parametrize(
    "said", ["/models/law/experts", "model.law/kv-cache.bin", "node n1/d0 is gone", "law is full"]
)
def test_only_parties_are_masked_not_paths_or_words(said: str) -> None:
    assert masking.text(said, {"chat"}) == said


def test_a_name_that_ends_like_a_foreign_one_stays_ones_own() -> None:
    assert masking.text("my-law/kv 3, law/kv 4", {"my-law"}) == "my-law/kv 3, another tenant 4"
