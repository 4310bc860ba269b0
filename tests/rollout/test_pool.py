"""Routing: least loaded, but what belongs together stays together; lost engines are out until they are back."""

import asyncio

import pytest

from areal_mega.rollout.pool import EngineAddress, EngineLostError, EnginePool
from areal_mega.rollout.server import EngineError

A, B, C = (EngineAddress(f"http://{name}", "key", "admin") for name in "abc")


async def never(address):
    await asyncio.Event().wait()


async def gone(address):
    raise EngineError(f"{address.url} is dead for good")


async def lose(pool, key=None):
    try:
        async with pool.lease(key) as lease:
            raise EngineLostError
    except EngineLostError:
        return lease.address


async def where(pool, key=None):
    async with pool.lease(key) as lease:
        return lease.address


def test_the_least_loaded_engine_is_taken():
    async def scenario():
        pool = EnginePool([A, B], never, 1)
        async with pool.lease(sequences=5) as first, pool.lease(sequences=2) as second:
            assert {first.address, second.address} == {A, B}
            async with pool.lease() as third:
                assert third.address == second.address
            assert pool.metrics()["engines/0/open"] == 5
        assert pool.metrics()["engines/0/open"] == 0

    asyncio.run(scenario())


def test_a_key_stays_with_its_engine_until_it_is_forgotten():
    async def scenario():
        pool = EnginePool([A, B], never, 1)
        home = await where(pool, "group")
        async with pool.lease("group"), pool.lease("group"):
            assert await where(pool, "group") == home
            pool.forget("group")
            assert await where(pool, "group") != home

    asyncio.run(scenario())


def test_a_lost_engine_is_out_until_it_is_back_at_its_new_address():
    async def scenario():
        back = asyncio.Event()

        async def revive(address):
            await back.wait()
            return C

        pool = EnginePool([A, B], revive, 1)
        lost = await lose(pool, "group")
        other = B if lost == A else A
        assert pool.alive == [other] and await where(pool, "group") == other
        back.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert set(pool.alive) == {other, C}
        assert await where(pool, "group") == other

    asyncio.run(scenario())


def test_an_engine_that_is_away_at_the_start_is_asked_when_it_is_back():
    async def scenario():
        back = asyncio.Event()

        async def revive(address):
            await back.wait()
            return C

        pool = EnginePool([A, B], revive, 1, away=[A])
        assert pool.alive == [B] and await where(pool) == B
        assert pool.metrics()["engines/0/lost"] == 0
        back.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert pool.alive == [C, B]

    asyncio.run(scenario())


def test_many_reports_of_one_loss_are_one_loss():
    async def scenario():
        revived = []

        async def revive(address):
            revived.append(address)
            return address

        pool = EnginePool([A], revive, 1)
        entered = [pool.lease() for _ in range(3)]
        for lease in entered:
            await lease.__aenter__()
        for lease in entered:
            assert not await lease.__aexit__(EngineLostError, EngineLostError(), None)
            await asyncio.sleep(0.01)
        assert revived == [A] and pool.metrics()["engines/0/lost"] == 1

    asyncio.run(scenario())


def test_with_no_engine_a_request_waits_for_one():
    async def scenario():
        async def revive(address):
            await asyncio.sleep(0.05)
            return C

        pool = EnginePool([A], revive, 1)
        await lose(pool)
        assert await where(pool) == C

    asyncio.run(scenario())


def test_but_not_for_ever_and_not_for_one_that_is_dead():
    async def scenario(revive, wait):
        pool = EnginePool([A], revive, wait)
        await lose(pool)
        await where(pool)

    with pytest.raises(EngineError, match=r"No engine was there for 0.05 seconds \(rollout.engine_wait\)"):
        asyncio.run(scenario(never, 0.05))
    with pytest.raises(EngineError, match="http://a is dead for good"):
        asyncio.run(scenario(gone, 60))


def test_an_engine_nobody_asks_anything_is_watched():
    async def scenario():
        async def probe(address):
            if address == B:
                raise EngineLostError

        pool = EnginePool([A, B], never, 1)
        watch = asyncio.create_task(pool.watch(probe, every=0.01))
        await asyncio.sleep(0.05)
        assert pool.alive == [A]
        watch.cancel()
        await pool.close()

    asyncio.run(scenario())
