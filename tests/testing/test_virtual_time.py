import asyncio

import pytest

from echostream.testing.virtual_time import DeadlockError, run_virtual


def test_time_jumps_to_each_timer_exactly():
    async def main():
        loop = asyncio.get_running_loop()
        start = loop.time()
        await asyncio.sleep(3600.1)
        assert loop.time() == start + 3600.1
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.25):
                await loop.create_future()
        assert loop.time() == start + 3600.1 + 0.25

    run_virtual(main())


def test_timers_fire_in_order():
    async def main():
        order = []

        async def note(delay):
            await asyncio.sleep(delay)
            order.append(delay)

        delays = [0.3, 0.1, 0.2, 0.0, 7.0]
        await asyncio.gather(*map(note, delays))
        assert order == sorted(delays)

    run_virtual(main())


def test_a_deadlock_names_who_waits():
    async def forever():
        await asyncio.get_running_loop().create_future()

    async def main():
        await asyncio.create_task(forever(), name="the waiter")

    with pytest.raises(DeadlockError, match=r"the waiter at .*forever"):
        run_virtual(main())


def test_periodic_timers_alone_are_a_deadlock_too():
    async def main():
        done = asyncio.Event()

        async def tick():
            while True:  # noqa: ASYNC110 - a timer is the point
                await asyncio.sleep(1)

        ticker = asyncio.create_task(tick())
        await done.wait()
        ticker.cancel()

    with pytest.raises(DeadlockError, match="limit of 60 s"):
        run_virtual(main(), limit=60)


def test_an_executor_runs_at_once():
    async def main():
        loop = asyncio.get_running_loop()
        assert await asyncio.to_thread(lambda: 42) == 42
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 // 0)

    run_virtual(main())


def test_exceptions_and_results_come_through():
    async def main(value):
        if value is None:
            raise KeyError("value")
        return value

    assert run_virtual(main(5)) == 5
    with pytest.raises(KeyError):
        run_virtual(main(None))
