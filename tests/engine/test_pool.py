"""Two engines, one of which is killed again and again: every response arrives once."""

import asyncio
import os
import signal

import psutil
import pytest
from engine.conftest import EOS
from engine.oracles import make_prompts
from models import tiny_model

from areal_mega.bench.full_gather import FullWeightTransport
from areal_mega.rollout.client import GenerationClient
from areal_mega.rollout.local_engines import LocalEngines, address_of
from areal_mega.rollout.sampling import Sampling
from areal_mega.rollout.server import SGLangServer

pytestmark = [pytest.mark.engine, pytest.mark.slow]

KILLS = 1


def start(folder, options, log):
    return SGLangServer(str(folder), options, dtype="float32", device="cpu", seed=2, log_path=log)


def kill(server):
    """As the kernel would, for want of memory: the engine's processes, not their guard."""
    for process in psutil.Process(server._guard.pid).children(recursive=True):
        os.kill(process.pid, signal.SIGKILL)


def test_a_dying_engine_loses_no_request(server, transport, model_folder, start_model, options, tmp_path):
    current = tiny_model("qwen3", seed=5)
    restarted = []

    def give_weights(engine):
        FullWeightTransport(engine).send(current.named_parameters(), version=5)

    def send(numbers):
        give_weights(engines.servers[1])
        restarted.extend(numbers)
        return {}

    async def readmit():
        """What the trainers do: those that are back get weights."""
        while not (back := await asyncio.to_thread(engines.returned)):
            await asyncio.sleep(0.1)
        await asyncio.to_thread(engines.give_weights, send, back)

    async def scenario():
        pool = engines.pool(wait_seconds=300)
        sampling = Sampling(max_new_tokens=60)
        prompts = make_prompts([4, 9, 15, 7], seed=8)
        finished = []

        async def stream(client, number):
            """One request after the other until the engine was killed and is back."""
            while len(restarted) < KILLS:
                key = (number, len(finished))
                finished.append((await client.generate(prompts[number % 4].tokens, [sampling] * 4, key), number))
                client.forget(key)

        async with GenerationClient(pool, 120, decode=lambda ids: "") as client:
            streams = [asyncio.create_task(stream(client, number)) for number in range(6)]
            for kills in range(1, KILLS + 1):
                await asyncio.sleep(0.5)
                await asyncio.to_thread(kill, engines.servers[1])
                await readmit()
                assert restarted == [1] * kills
                assert address_of(server) in pool.alive
            await asyncio.gather(*streams)
            return finished, client.counts, pool.metrics()

    transport.send(current.named_parameters(), version=5)
    second = start(model_folder, options, tmp_path / "second.log")
    try:
        second.wait_ready()
        give_weights(second)
        engines = LocalEngines([server, second], restarts=1)
        finished, counts, metrics = asyncio.run(scenario())
    finally:
        transport.send(start_model.named_parameters(), version=0)
        second.close()

    assert metrics["engines/1/lost"] >= KILLS and counts.resent >= KILLS
    assert len(finished) > 20
    for group, _ in finished:
        assert len(group) == 4
        for g in group:
            assert set(g.versions) == {5}  # never the weights a new engine starts with
            assert len(g.tokens) == len(g.logprobs) == len(g.versions)
            assert g.finish_reason == ("stop" if g.tokens[-1] == EOS else "length")
            assert len(g.tokens) == 60 or g.finish_reason == "stop"
    assert counts.generated == sum(len(g.tokens) for group, _ in finished for g in group)
