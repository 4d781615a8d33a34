"""Simulated time moves only when told, and wakes sleepers in order."""

import asyncio

import pytest

from moectl.core.clock import Clock, SimClock, SystemClock


async def test_sleepers_wake_in_the_order_of_their_deadlines_at_their_own_instant() -> None:
    clock, seen = SimClock(start=100.0), []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        seen.append((name, clock.monotonic()))

    tasks = [asyncio.create_task(sleeper(n, s)) for n, s in (("b", 2.0), ("a", 1.0), ("c", 2.0))]
    await clock.advance(1.5)
    assert seen == [("a", 101.0)]
    await clock.advance(1.0)
    assert seen == [("a", 101.0), ("b", 102.0), ("c", 102.0)]
    assert clock.now() == 102.5
    await asyncio.gather(*tasks)


async def test_a_loop_that_sleeps_again_runs_as_often_as_its_period_fits() -> None:
    clock, ticks = SimClock(start=0.0), []

    async def loop() -> None:
        while True:
            await clock.sleep(0.25)
            ticks.append(clock.monotonic())

    task = asyncio.create_task(loop())
    await clock.advance(1.0)
    task.cancel()
    assert ticks == [0.25, 0.5, 0.75, 1.0]


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    clock = SimClock()
    task = asyncio.create_task(clock.sleep(1.0))
    await clock.advance(0.5)
    assert clock.sleeper_count == 1
    task.cancel()
    await clock.advance(1.0)
    assert clock.sleeper_count == 0


async def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="does not go back"):
        await SimClock().advance(-1.0)


async def test_sleeping_for_nothing_yields_once() -> None:
    clock: Clock = SimClock()
    await clock.sleep(0)


async def test_the_system_clock_is_a_clock() -> None:
    clock: Clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(0)
    assert clock.monotonic() >= before
    assert clock.now() > 1_600_000_000
