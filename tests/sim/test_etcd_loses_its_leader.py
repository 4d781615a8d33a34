"""A cluster of three loses its leader in the middle of a scale: where does the scale end?

The real controller on a real etcd cluster, with the simulated agents; time is the wall's.
"""

import asyncio
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from etcd_cluster import EtcdCluster
from sim_world import World

from moectl.controller.observe import Mirror
from moectl.core.clock import SystemClock
from moectl.core.errors import StoreError


class WallClock(SystemClock):
    """Time that nobody moves: `advance` waits for it."""

    async def advance(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class RealWorld(World):
    """The world of the simulator on a store that can lose its leader."""

    def __init__(self, cluster: EtcdCluster, seed: int) -> None:
        super().__init__(seed)
        self.clock = WallClock()  # type: ignore[assignment]
        self.store = cluster.store(deadline_s=3.0)  # type: ignore[assignment]


@pytest.mark.parametrize("moment_s", [0.3])
async def test_a_scale_ends_in_the_old_or_the_new_width(tmp_path: Path, moment_s: float) -> None:
    cluster = EtcdCluster(tmp_path)
    try:
        await cluster.wait_healthy()
        async with RealWorld(cluster, 6) as world:
            assert isinstance(world.mirror, Mirror)
            world.start_controller()
            assert await world.run_until(lambda seen: len(seen.nodes) == 2, 10)
            await world.apply(2)
            assert await world.run_until(world.is_settled, 20)
            await world.scale("3", "the-scale")
            await world.run(moment_s)
            (await cluster.leader()).kill()
            assert await _settled(world, 40)
            placed = world.snapshot.placements["chat"].value
            assert placed.width in (2, 3)
            assert world.last().phase in ("done", "forfeited")
            assert (placed.width == 3) is (world.last().phase == "done")
            again = 4 if placed.width == 3 else 3
            await world.scale(str(again), "afterwards")
            assert await _settled(world, 30)
            assert world.snapshot.placements["chat"].value.width == again
    finally:
        cluster.stop()


async def _settled(world: RealWorld, limit_s: float) -> bool:
    """Until nothing changes any more; what a lost leader interrupts is tried again."""
    async with asyncio.timeout(limit_s):
        while True:
            try:
                if await world.run_until(world.is_settled, limit_s):
                    return True
            except StoreError:
                await asyncio.sleep(0.2)
