"""The collector in a process of its own, so that it and the trainer never wait for each other's interpreter.

The trainer's side is `RemoteCollector`. Messages on the pipe are tuples that begin with a word: `_Service` does what
those say that go to the process, `RemoteCollector._read` reads those that come back.
"""

from __future__ import annotations

import asyncio
import os
import queue
import subprocess
import threading
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from areal_mega.config.errors import UserError
from areal_mega.data.sample import Prompt, Sample
from areal_mega.rollout.collector import Batch, Collector, Setup, group_runner
from areal_mega.rollout.local_engines import LocalEngines
from areal_mega.rollout.pool import EngineAddress, EnginePool
from areal_mega.rollout.server import EngineError
from areal_mega.runtime.child import start_child

_END_SECONDS = 10.0
_IDLE_SECONDS = 5.0


class RemoteCollector:
    """Starts the process and speaks to it, from one thread. Should this process die, the other ends too."""

    def __init__(self, setup: Setup, engines: LocalEngines) -> None:
        self._engines = engines
        module = "areal_mega.rollout.collector_process"
        self._process, self._pipe = start_child(module, TOKENIZERS_PARALLELISM="false")
        self._answers: queue.Queue[tuple] = queue.Queue()
        self._sending = threading.Lock()
        self._send("setup", setup)
        threading.Thread(target=self._read, name="collector", daemon=True).start()

    def take(self) -> Batch:
        """The next batch; waits for it.

        Raises:
            Exception: what `Collector.take` raised there.
            EngineError: the process died.
        """
        self._send("take")
        return self._answer()

    def generate(self, prompts: Sequence[Prompt], samples: int, temperature: float, seed: int) -> list[Sample]:
        """As `Sampler.generate`, beside the generation that goes on."""
        self._send("evaluate", list(prompts), samples, temperature, seed)
        return self._answer()

    def publish(self, version: int) -> None:
        """The engines have new weights."""
        self._send("publish", version)

    def close(self) -> None:
        """End the process and what it has under way."""
        self._send("close")
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, *message: Any) -> None:
        """A process that is dead gets nothing, and the reader says that it is."""
        with self._sending, suppress(OSError):
            self._pipe.send(message)

    def _answer(self) -> Any:
        word, content = self._answers.get()
        if word == "failed":
            raise content
        return content

    def _read(self) -> None:
        """Answers go to who asked; lost engines are brought back by who started them."""
        while True:
            try:
                word, content = self._pipe.recv()
            except (EOFError, OSError):
                status = self._process.wait()
                self._answers.put(("failed", EngineError(f"The collector process died (exit status {status}).")))
                return
            if word == "lost":
                threading.Thread(target=self._revive, args=(content,), daemon=True).start()
            else:
                self._answers.put((word, content))

    def _revive(self, address: EngineAddress) -> None:
        try:
            found: Any = asyncio.run(self._engines.revive(address))
        except Exception as error:
            found = EngineError(str(error))
        self._send("revived", address, found)


class _Service:
    """The process's side: does what the messages say."""

    def __init__(self, pipe: Connection, setup: Setup) -> None:
        self._pipe, self._setup = pipe, setup
        self._revivals: dict[EngineAddress, asyncio.Future[EngineAddress]] = {}
        self._reader, self._trainer = ThreadPoolExecutor(1, "pipe"), os.getppid()

    async def run(self) -> None:
        setup = self._setup
        pool = EnginePool(setup.engines, self._revive, setup.options.engine_wait)
        async with group_runner(pool, setup) as runner:
            self._runner = runner
            self._collector = Collector(runner, setup)
            self._collector.publish(setup.manager.version)
            tasks: set[asyncio.Task[None]] = set()
            while (message := await self._receive())[0] != "close":
                task = asyncio.create_task(self._do(message))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            for task in tasks:
                task.cancel()
            await self._collector.close()

    async def _do(self, message: tuple) -> None:
        word, *content = message
        if word == "publish":
            self._collector.publish(*content)
        elif word == "revived":
            self._revived(*content)
        else:
            try:
                found = await (self._collector.take() if word == "take" else self._evaluate(*content))
            except Exception as error:
                self._send("failed", _sendable(error))
            else:
                self._send("done", found)

    async def _evaluate(self, prompts: list[Prompt], samples: int, temperature: float, seed: int) -> list[Sample]:
        runs = [
            self._runner.run(prompt, ("evaluation", group), samples, temperature, f"{seed}/{group}")
            for group, prompt in enumerate(prompts)
        ]
        finished = []
        for group, found in enumerate(await asyncio.gather(*runs)):
            for sample in found:
                sample.group = group
                finished.append(sample)
        return finished

    async def _revive(self, address: EngineAddress) -> EngineAddress:
        future = self._revivals[address] = asyncio.get_running_loop().create_future()
        self._send("lost", address)
        return await future

    def _revived(self, address: EngineAddress, found: EngineAddress | EngineError) -> None:
        future = self._revivals.pop(address)
        if isinstance(found, EngineError):
            future.set_exception(found)
        else:
            future.set_result(found)

    async def _receive(self) -> tuple:
        return await asyncio.get_running_loop().run_in_executor(self._reader, self._read)

    def _read(self) -> tuple:
        """The next message; the trainer's death is as good as its word."""
        try:
            # A process forked from the trainer may hold the other end open when the trainer is long gone.
            while not self._pipe.poll(_IDLE_SECONDS):
                if os.getppid() != self._trainer:
                    return ("close",)
            return self._pipe.recv()
        except (EOFError, OSError):
            return ("close",)

    def _send(self, word: str, content: Any) -> None:
        with suppress(OSError):
            self._pipe.send((word, content))


def _sendable(error: Exception) -> Exception:
    """Not every exception survives the pipe; what a user has to read does, and of others the traceback."""
    if isinstance(error, (UserError, EngineError)):
        return error
    return EngineError("".join(traceback.format_exception(error)))


def main(descriptor: int) -> None:
    """The process."""
    pipe = Connection(descriptor)
    _, setup = pipe.recv()
    asyncio.run(_Service(pipe, setup).run())
