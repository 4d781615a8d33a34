"""What the planner is told about a model's bytes: the types that workers will really hold."""

import dataclasses

import pytest

from moectl.controller.planning import demand_of
from moectl.core.plan import DeviceId
from moectl.core.records import DeviceRecord
from moectl.core.spec import model_spec_from_plain


def demand(kind: str, facts, **spec):
    plain = {"source": {"path": "/models/chat"}, "parallelism": {"experts": 2}} | spec
    devices = {DeviceId("n1", "d0"): DeviceRecord("d0", kind, 1 << 30, 1 << 14)}
    return demand_of(model_spec_from_plain(plain), facts, devices)


@pytest.mark.parametrize(
    ("kind", "spec", "expert", "shared"),
    [
        ("cpu", {}, 4, 4),
        ("cpu", {"engine": {"dtype": "bfloat16"}}, 2, 4),  # all else is float32 on a cpu
        ("cpu", {"precision": "reproducible"}, 2, 4),
        ("cuda", {}, 2, 2),
        ("cuda", {"engine": {"dtype": "float32"}}, 4, 4),
    ],
)
def test_experts_and_shared_weights_are_counted_in_the_types_they_are_held_in(
    fleet, kind, spec, expert, shared
):
    facts = dataclasses.replace(fleet.facts["/models/chat"], dtype="bfloat16")
    told = demand(kind, facts, **spec)
    assert told.expert_bytes == expert * facts.expert_elements
    assert told.shared_bytes == shared * facts.shared_elements


def test_a_reproducible_model_of_a_float32_checkpoint_is_not_rounded(fleet):
    facts = fleet.facts["/models/chat"]
    told = demand("cpu", facts, precision="reproducible")
    assert told.expert_bytes == 4 * facts.expert_elements
