"""`parallelism: auto` while machines come and go: it follows the fleet, and it never flaps."""

from sim_world import World

from moectl.core.plan import Phase, TransitionKind


async def auto_world(world: World) -> None:
    world.start_controller()
    await world.run(2)
    await world.apply("auto")
    assert await world.run_until(world.is_settled, 30)
    assert world.snapshot.placements["chat"].value.width == 4


async def test_it_settles_as_wide_as_the_fleet_and_stays_there() -> None:
    async with World(21) as world:
        await auto_world(world)
        epoch = world.snapshot.placements["chat"].value.epoch
        await world.run(200)
        assert world.snapshot.placements["chat"].value.epoch == epoch
        assert len(world.snapshot.history("chat")) == 1


async def test_an_agent_that_restarts_moves_nothing() -> None:
    async with World(22) as world:
        await auto_world(world)
        placed = world.snapshot.placements["chat"]
        await world.kill_agent("n2")
        await world.run(9)
        world.start_agent("n2")
        await world.run(120)
        assert world.snapshot.placements["chat"] == placed


async def test_a_lost_machine_is_done_without_and_grown_onto_when_it_stays() -> None:
    async with World(23) as world:
        await auto_world(world)
        await world.crash_machine("n2")
        assert await world.run_until(
            lambda s: s.placements["chat"].value.width == 2 and world.is_settled(s), 60
        )
        world.start_agent("n2")
        assert await world.run_until(
            lambda s: s.placements["chat"].value.width == 4 and world.is_settled(s), 120
        )
        await world.run(300)
        kinds = [t.kind for t in world.snapshot.history("chat") if t.phase is Phase.DONE]
        assert kinds == [TransitionKind.CREATE, TransitionKind.HEAL, TransitionKind.SCALE]
        assert world.referee.verdicts == []


async def test_a_growth_that_cannot_be_prepared_is_tried_rarely_and_never_given_up() -> None:
    async with World(24) as world:
        await auto_world(world)
        await world.crash_machine("n2")
        assert await world.run_until(lambda s: s.placements["chat"].value.width == 2, 60)
        world.tempers["n2"].fails_prepare = 1.0
        world.start_agent("n2")
        await world.run(250)
        tried = [t for t in world.snapshot.history("chat") if t.phase is Phase.FORFEITED]
        assert len(tried) == 1  # the next one is due five minutes after it failed
        assert world.snapshot.status["chat"].value.failed_generation == 0
        world.tempers["n2"].fails_prepare = 0.0
        assert await world.run_until(lambda s: s.placements["chat"].value.width == 4, 200)
        assert world.referee.verdicts == []
