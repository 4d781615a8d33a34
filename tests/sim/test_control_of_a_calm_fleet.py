"""The loop over a fleet in which only the named thing goes wrong."""

import pytest
from sim_world import World

from moectl.core.errors import ConflictError, UnplaceableError
from moectl.core.plan import DeviceId, Phase, TransitionKind

N1D0 = DeviceId("n1", "d0")


async def settled_world(world: World, experts: int = 2) -> None:
    world.start_controller()
    await world.run(1)
    await world.apply(experts)
    assert await world.run_until(world.is_settled, 20)


async def test_a_model_is_created_scaled_up_and_down_and_deleted() -> None:
    async with World(1) as world:
        await settled_world(world)
        for width in (4, 3, 2, 1, 4):
            accepted = await world.scale(str(width))
            assert accepted["to_width"] == width
            assert await world.run_until(world.is_settled, 20)
            record = world.snapshot.transitions[accepted["operation_id"]].value
            assert record.phase is Phase.DONE
            assert record.actual["bytes_copied"] > 0
            assert record.actual["ready_s"] >= record.actual["prepare_s"]
            assert record.prediction == type(record.prediction)(
                **{**accepted["plan"]["prediction"]}
            )
        deleted = await world.delete()
        assert await world.run_until(world.is_settled, 20)
        assert deleted["operation_id"] in world.snapshot.transitions
        assert not world.snapshot.workers
        assert world.referee.verdicts == []


async def test_a_killed_worker_is_started_again_on_its_pages() -> None:
    async with World(2) as world:
        await settled_world(world, 4)
        before = world.snapshot.placements["chat"].value
        world.kill_worker(N1D0)
        assert await world.run_until(lambda s: s.history("chat")[-1].kind == "heal", 5)
        assert await world.run_until(world.is_settled, 20)
        after = world.snapshot.placements["chat"].value
        assert after.owners == before.owners
        assert after.epoch > before.epoch
        assert after.instances[0] > before.instances[0]
        assert after.instances[1:] == before.instances[1:]
        assert world.last().prediction.bytes_moved == 0
        assert world.referee.verdicts == []


async def test_a_crashed_node_is_replaced_and_used_again_when_it_returns() -> None:
    async with World(3, nodes=3) as world:
        await settled_world(world, 4)
        await world.crash_machine("n1")
        assert await world.run_until(lambda s: "n1" not in s.nodes, 20)
        assert await world.run_until(world.is_settled, 60)
        nodes = {device.node for device in world.snapshot.placements["chat"].value.ranks}
        assert nodes == {"n2", "n3"}
        assert world.referee.verdicts == []


async def test_without_spares_a_model_gets_narrower_and_grows_back() -> None:
    async with World(4) as world:
        await settled_world(world, 4)
        await world.crash_machine("n2")

        def is_narrow(snapshot) -> bool:
            status = snapshot.status["chat"].value
            ready = next(c for c in status.conditions if c.type == "Ready")
            return snapshot.placements["chat"].value.width == 2 and ready.reason == "Narrow"

        assert await world.run_until(is_narrow, 60)
        world.start_agent("n2")
        assert await world.run_until(world.is_settled, 60)
        assert world.snapshot.placements["chat"].value.width == 4
        assert world.referee.verdicts == []


async def test_an_agent_that_restarts_disturbs_nothing() -> None:
    async with World(5) as world:
        await settled_world(world, 4)
        epoch = world.snapshot.placements["chat"].value.epoch
        await world.kill_agent("n2")
        await world.run(9)  # its lease runs out; the workers serve on
        assert "n2" not in world.snapshot.nodes
        world.start_agent("n2")
        await world.run(10)
        assert world.snapshot.placements["chat"].value.epoch == epoch
        assert world.is_settled(world.snapshot)


async def test_a_refused_prepare_is_forfeited_and_not_tried_again() -> None:
    async with World(6) as world:
        await settled_world(world)
        placement = world.snapshot.placements["chat"]
        world.tempers["n2"].fails_prepare = 1.0
        accepted = await world.scale("4")
        await world.run(20)
        record = world.snapshot.transitions[accepted["operation_id"]].value
        assert record.phase is Phase.FORFEITED
        assert record.reason.startswith("PrepareFailed")
        assert world.snapshot.placements["chat"] == placement
        assert len([t for t in world.snapshot.history("chat") if t.kind == "scale"]) == 1
        assert world.snapshot.status["chat"].value.failed_generation == 2
        world.tempers["n2"].fails_prepare = 0.0
        again = await world.scale("4")  # the same words again are a new intent
        assert again["operation_id"] != accepted["operation_id"]
        assert await world.run_until(
            lambda s: s.placements["chat"].value.width == 4 and world.is_settled(s), 20
        )
        assert world.referee.verdicts == []


async def test_a_node_that_never_answers_is_given_up_at_the_deadline() -> None:
    async with World(7) as world:
        await settled_world(world)
        world.tempers["n2"].stays_mute = 1.0
        accepted = await world.scale("4")
        await world.run(55)
        assert world.snapshot.transitions[accepted["operation_id"]].value.phase is Phase.PREPARE
        await world.run(40)
        record = world.snapshot.transitions[accepted["operation_id"]].value
        assert record.phase is Phase.FORFEITED
        assert record.reason.startswith("PrepareDeadline: no answer from n2")
        assert world.snapshot.placements["chat"].value.width == 2


async def test_a_worker_lost_while_preparing_forfeits_heals_and_tries_again() -> None:
    async with World(8) as world:
        await settled_world(world)
        world.tempers["n2"].delay_s_max = 10.0
        await world.scale("4", "wider")
        await world.run(0.5)
        world.kill_worker(N1D0)
        assert await world.run_until(
            lambda s: s.placements["chat"].value.width == 4 and world.is_settled(s), 90
        )
        kinds = [(t.kind, t.phase) for t in world.snapshot.history("chat")]
        assert (TransitionKind.SCALE, Phase.FORFEITED) in kinds
        assert (TransitionKind.HEAL, Phase.DONE) in kinds
        assert kinds[-1] == (TransitionKind.SCALE, Phase.DONE)
        assert world.referee.verdicts == []


async def test_a_conflicting_target_is_told_what_is_running() -> None:
    async with World(9) as world:
        await settled_world(world)
        world.tempers["n2"].delay_s_max = 10.0
        await world.scale("4", "first")
        with pytest.raises(ConflictError, match="first"):
            await world.scale("3")
        await world.run(1)
        with pytest.raises(ConflictError, match="first"):
            await world.scale("3")
        same = await world.scale("4")
        assert same["operation_id"] == "first"
        assert (await world.scale("4", "first"))["unchanged"]


async def test_a_cancelled_scale_leaves_everything_as_it_was() -> None:
    async with World(10) as world:
        await settled_world(world)
        placement = world.snapshot.placements["chat"]
        world.tempers["n2"].delay_s_max = 30.0
        await world.scale("4", "wider")
        await world.run(1)
        await world.cancel("wider")
        world.tempers["n2"].delay_s_max = 1.0
        await world.run(40)
        assert world.snapshot.transitions["wider"].value.phase is Phase.FORFEITED
        assert world.snapshot.placements["chat"] == placement
        assert world.is_settled(world.snapshot)
        assert world.referee.verdicts == []


async def test_widths_that_cannot_be_are_refused_with_the_number_of_devices() -> None:
    async with World(11) as world:
        await settled_world(world)
        with pytest.raises(UnplaceableError, match="4 devices are alive"):
            await world.scale("5")
        with pytest.raises(UnplaceableError):
            await world.scale("-2")
        await world.run(2)
        assert world.snapshot.model_spec("chat").value.generation == 1


async def test_two_models_share_the_fleet_and_its_memory() -> None:
    async with World(12) as world:
        await settled_world(world)
        await world.apply(3, "other")
        assert await world.run_until(lambda s: world.is_settled(s, "other"), 20)
        assert world.is_settled(world.snapshot)
        assert world.referee.verdicts == []


async def test_a_standby_takes_over_when_the_leader_stops() -> None:
    async with World(13) as world:
        await settled_world(world)
        world.start_controller()
        await world.run(1)
        first = world._controllers.pop(0)
        first.cancel()
        await world.scale("4")
        assert await world.run_until(
            lambda s: s.placements["chat"].value.width == 4 and world.is_settled(s), 30
        )
        assert world.referee.verdicts == []
