"""The controller may die before or after any of its writes: another one goes on from the store."""

import asyncio

import pytest
from sim_world import World

from moectl.core.store.memory import MemoryStore
from moectl.core.transitions import TERMINAL_PHASES


class DeadlyStore:
    """The store as one controller sees it: its n-th write is the last thing that it does."""

    def __init__(self, store: MemoryStore, deadly_write: int, after: bool) -> None:
        self._store = store
        self._left = deadly_write
        self._after = after

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def transaction(self, compare, success, failure=()):
        self._left -= 1
        if self._left == 0 and not self._after:
            raise asyncio.CancelledError
        result = await self._store.transaction(compare, success, failure)
        if self._left == 0:
            raise asyncio.CancelledError
        return result

    async def campaign(self, key, value, lease):
        return await self._store.campaign(key, value, lease)


async def go_through_life(world: World) -> None:
    """Create, scale, heal and delete, with whoever controls the world."""
    await world.apply(2)
    assert await world.run_until(world.is_settled, 60)
    await world.scale("3", "wider")
    assert await world.run_until(world.is_settled, 60)
    world.kill_worker(world.snapshot.placements["chat"].value.ranks[0])
    await world.run(1)
    assert await world.run_until(world.is_settled, 60)
    await world.delete()
    assert await world.run_until(world.is_settled, 60)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_another_controller_goes_on_from_any_write(after: bool) -> None:
    kills = 0
    for deadly_write in range(1, 60):
        async with World(deadly_write) as world:
            world.start_controller(DeadlyStore(world.store, deadly_write, after))
            successor = asyncio.create_task(take_over(world))
            await world.run(0.5)
            await go_through_life(world)
            await world.run(3)
            has_died = successor.done()
            successor.cancel()
            assert world.referee.verdicts == []
            assert all(t.phase in TERMINAL_PHASES for t in world.snapshot.history("chat"))
            kinds = [str(t.kind) for t in world.snapshot.history("chat")]
            assert kinds == ["create", "scale", "heal", "delete"]
        if not has_died:
            break
        kills += 1
    assert 15 < kills < 59  # the whole life was covered, and it ended


async def take_over(world: World) -> None:
    while world.running_controllers:
        await world.clock.sleep(0.1)
    world.start_controller()
