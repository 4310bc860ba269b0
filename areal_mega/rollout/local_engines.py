"""The engines this process started, and starts again when they die."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from areal_mega.rollout.pool import EngineAddress
from areal_mega.rollout.server import EngineError, SGLangServer

# Short, as Ctrl-C must not wait for an engine that hangs.
ABORT_SECONDS = 5.0
# A connection was lost, but the engine lives: what is under way there is given a moment.
_REST_SECONDS = 0.5


class LocalEngines:
    """Servers and their addresses.

    restart: ends a server that died or failed, starts another in its place, gives it the current weights and returns
    it; it is called in a thread. Without it the loss of an engine is an error.
    """

    def __init__(
        self, servers: Sequence[SGLangServer], restart: Callable[[SGLangServer], SGLangServer] | None = None
    ) -> None:
        self.servers, self._restart = list(servers), restart

    @property
    def addresses(self) -> list[EngineAddress]:
        return [address_of(server) for server in self.servers]

    def wait_ready(self) -> None:
        """Return when all answer.

        Raises:
            UserError: one did not start.
            EngineError: one died and cannot be started again.
        """
        for index, server in enumerate(self.servers):
            try:
                server.wait_ready()
            except EngineError:
                if self._restart is None:
                    raise
                self.servers[index] = self._restart(server)

    async def revive(self, address: EngineAddress) -> EngineAddress:
        """Where the engine of this address, or its successor, serves the current weights again.

        Raises:
            EngineError: it is dead, with the last words of its log.
        """
        index = next(i for i, server in enumerate(self.servers) if server.url == address.url)
        try:
            self.servers[index].check()
        except EngineError:
            if self._restart is None:
                raise
            self.servers[index] = await asyncio.to_thread(self._restart, self.servers[index])
        else:
            await asyncio.sleep(_REST_SECONDS)
        return address_of(self.servers[index])

    def abort_all(self) -> None:
        """End everything that is under way."""
        for server in self.servers:
            with suppress(EngineError):
                server.order("/abort_request", {"abort_all": True}, timeout=ABORT_SECONDS)

    def close(self) -> None:
        for server in self.servers:
            server.close()


def address_of(server: SGLangServer) -> EngineAddress:
    return EngineAddress(server.url, server.api_key, server.admin_key)
