"""An intent that is decided again, by a client or after a lost answer, stays what it was."""

import httpx
import pytest

from moectl.controller import intents
from moectl.controller.admission import Ground
from moectl.controller.api.app import create_app
from moectl.controller.decision import Draft
from moectl.core.errors import ConflictError, NotFoundError, StoreAmbiguousError
from moectl.core.plan import Phase
from moectl.core.records import ModelStatus, SpecRecord, from_json

NOW = 1000.0


def ground(fleet) -> Ground:
    return Ground(fleet.snapshot, fleet.facts, fleet.limits)


def caller(operation_id: str = "op-9") -> intents.Caller:
    return intents.Caller("ann", NOW, operation_id)


def ready(fleet, width: int) -> None:
    """`chat` serves, and its status says that generation 1 was carried out."""
    fleet.declare(width)
    fleet.place(width)
    fleet.tell_status(ModelStatus("chat", 1, width, width, width, width, width, 1, ()))


def land(fleet, accepted) -> None:
    """The write of an intent happened, whatever its caller was told."""
    key = fleet.keys.spec("Model", "chat")
    record = from_json(SpecRecord, dict(accepted.change.puts)[key])
    fleet.parts["specs"][("Model", "chat")] = fleet.seen(record)


@pytest.mark.parametrize(("before", "change"), [(2, "-1"), (2, "+2"), (3, "4")])
def test_a_scale_that_landed_answers_the_same_when_it_is_decided_again(
    fleet, before, change
) -> None:
    ready(fleet, before)
    first = intents.decide_scale("chat", change, ground(fleet), caller(), 1)
    land(fleet, first)
    again = intents.decide_scale("chat", change, ground(fleet), caller(), 1)
    assert again.change is None
    assert again.body == first.body | {"unchanged": True}  # with its plan: there is work ahead
    fleet.begin(first.body["to_width"], Phase.PREPARE, "op-9")
    begun = intents.decide_scale("chat", change, ground(fleet), caller(), 1)
    assert (begun.body["to_width"], begun.change) == (first.body["to_width"], None)
    assert begun.body["plan"] == first.body["plan"]


def test_a_repeat_that_waits_for_devices_is_still_known(fleet) -> None:
    ready(fleet, 2)
    land(fleet, intents.decide_scale("chat", "4", ground(fleet), caller()))
    fleet.lose_node("n2")
    again = intents.decide_scale("chat", "4", ground(fleet), caller())
    assert (again.body["operation_id"], again.body["to_width"]) == ("op-9", 4)


def declared(kv: str):
    spec = {
        "source": {"path": "/models/chat"},
        "parallelism": {"experts": 3},
        "memory": {"kvPerDevice": kv},
    }
    (document,) = intents.parse_declarations([{"kind": "Model", "name": "chat", "spec": spec}])
    return document


def test_an_apply_that_landed_did_not_make_its_own_expectation_stale(fleet) -> None:
    ready(fleet, 2)
    land(fleet, intents.decide_apply(declared("1MiB"), ground(fleet), caller(), 1))
    again = intents.decide_apply(declared("1MiB"), ground(fleet), caller(), 1)
    assert (again.body["action"], again.body["operation_id"], again.change) == (
        "unchanged",
        "op-9",
        None,
    )
    for document, who in ((declared("1MiB"), caller("op-10")), (declared("2MiB"), caller())):
        with pytest.raises(ConflictError, match="generation is 2, not 1"):
            intents.decide_apply(document, ground(fleet), who, 1)


class LosesAnswers:
    """A committer whose first write happens while its answer is lost."""

    def __init__(self, real) -> None:
        self._real, self.lost = real, 0

    async def commit(self, change, fence=()):
        result = await self._real.commit(change, fence)
        if not self.lost:
            self.lost += 1
            raise StoreAmbiguousError("no answer")
        return result


def client_of(services) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(services), raise_app_exceptions=False)
    headers = {"Authorization": "Bearer secret-admin"}
    return httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers)


async def test_a_token_whose_write_was_not_answered_is_still_told_its_text(calm_services) -> None:
    calm_services.committer = losing = LosesAnswers(calm_services.committer)
    async with client_of(calm_services) as client:
        body = {"name": "ci", "role": "viewer"}
        answer = await client.post("/v1/tokens", json=body)
        assert (answer.status_code, losing.lost) == (201, 1)
        headers = {"Authorization": f"Bearer {answer.json()['token']}"}
        assert (await client.get("/v1/fleet", headers=headers)).status_code == 200
        assert (await client.post("/v1/tokens", json=body)).status_code == 409


async def test_what_was_taken_away_without_an_answer_is_not_called_unknown(calm_services) -> None:
    async with client_of(calm_services) as client:
        await client.post("/v1/tokens", json={"name": "ci", "role": "viewer"})
        spec = {"nodes": [{"name": "n1", "devices": [{"id": "d0", "hbm": "64MiB"}]}]}
        cluster = {"kind": "Cluster", "name": "c", "spec": spec}
        await client.post("/v1/apply", json={"documents": [cluster]})
        for path, action in (("tokens/ci", "revoked"), ("specs/Cluster/c", "deleted")):
            real = calm_services.committer
            calm_services.committer = losing = LosesAnswers(real)
            answer = await client.delete(f"/v1/{path}")
            calm_services.committer = real
            assert (answer.status_code, losing.lost) == (200, 1)
            assert answer.json()["action"] == action
            assert (await client.delete(f"/v1/{path}")).status_code == 404


async def test_a_write_whose_model_was_deleted_meanwhile_is_not_called_done(calm_services) -> None:
    tried = intents.Accepted({}, Draft("model/chat", "ScaleAccepted").done())
    answers = iter([tried])

    def decide(_ground) -> intents.Accepted:
        for accepted in answers:
            return accepted
        raise NotFoundError("no model 'chat' is declared")

    calm_services.committer = LosesAnswers(calm_services.committer)
    with pytest.raises(NotFoundError):
        await calm_services.carry_out(decide)
