"""The collector for synchronous runs: in this process, while the caller waits."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from areal_mega.rollout.collector import Batch, Collector, Setup, group_runner
from areal_mega.rollout.local_engines import LocalEngines


class LocalCollector:
    """Nothing is under way between two calls: the setup's staleness bound must be 0."""

    def __init__(self, setup: Setup, engines: LocalEngines) -> None:
        if setup.manager.eta:
            raise ValueError("what is generated ahead needs a process of its own, see RemoteCollector")
        self._setup, self._engines = setup, engines

    def take(self) -> Batch:
        """The next batch, as `Collector.take`; what is under way is aborted if this fails."""
        self._engines.wait_ready()
        try:
            batch = asyncio.run(self._take())
        except BaseException:
            self._engines.abort_all()
            raise
        self._setup = replace(self._setup, place=batch.place)
        return batch

    def publish(self, version: int) -> None:
        """The engines have new weights."""
        self._setup.manager.publish(version)

    def close(self) -> None:
        """There is nothing to end."""

    async def _take(self) -> Batch:
        pool = self._engines.pool(self._setup.options.engine_wait)
        async with group_runner(pool, self._setup) as runner:
            collector = Collector(runner, self._setup)
            try:
                return await collector.take()
            finally:
                await collector.close()
