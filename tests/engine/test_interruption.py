"""Requests that are interrupted, lose their engine or are cut: every token is there once, with its version."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from engine.conftest import EOS
from engine.oracles import logprobs_by, make_prompts
from models import tiny_model

from areal_mega.rollout.client import CutError, GenerationClient
from areal_mega.rollout.local_engines import LocalEngines
from areal_mega.rollout.sampling import Sampling

pytestmark = pytest.mark.engine

NEW_TOKENS = 200
LONG = Sampling(max_new_tokens=NEW_TOKENS, stop_tokens=(EOS,))


@asynccontextmanager
async def client_of(server, **options):
    async with GenerationClient(
        LocalEngines([server]).pool(wait_seconds=60), 120, decode=lambda ids: "", **options
    ) as client:
        yield client


@pytest.fixture
def weights_restored(transport, start_model):
    yield
    transport.send(start_model.named_parameters(), version=0)


async def all_are_running(client):
    """A short request that came last is finished; returns its tokens."""
    await asyncio.sleep(0.05)
    return len((await client.generate([9], Sampling(max_new_tokens=5)))[0].tokens)


def update(server, transport, model, version, mode):
    server.order("/pause_generation", {"mode": mode})
    transport.send(model.named_parameters(), version)
    server.order("/continue_generation", {})


@pytest.mark.usefixtures("weights_restored")
@pytest.mark.parametrize("mode", ["abort", "retract"])
def test_a_weight_update_loses_no_request_and_every_token_has_its_version(server, transport, start_model, mode):
    prompts = make_prompts([3, 8, 20, 11], seed=4)
    models = {0: start_model, 1: tiny_model("qwen3", seed=7)}

    async def interrupted():
        async with client_of(server) as client:
            requests = [asyncio.create_task(client.generate(p.tokens, [LONG] * 16, i)) for i, p in enumerate(prompts)]
            short = await all_are_running(client)
            await asyncio.to_thread(update, server, transport, models[1], 1, mode)
            return await asyncio.gather(*requests), short, client.counts

    groups, short, counts = asyncio.run(interrupted())

    assert [len(group) for group in groups] == [16] * 4
    spanning = 0
    for prompt, group in zip(prompts, groups, strict=True):
        for g in group:
            assert len(g.tokens) == len(g.logprobs) == len(g.versions)
            assert_whole(g)
            assert g.versions == sorted(g.versions) and set(g.versions) <= {0, 1}
            spanning += len(set(g.versions)) == 2
        check_logprobs(prompt.tokens, group[0], models)
    assert spanning > 8
    assert counts.generated == sum(len(g.tokens) for group in groups for g in group) + short
    assert (counts.resumed > 0) == (mode == "abort")


def assert_whole(g):
    """It ends with the end token, which is nowhere else, or for its length."""
    assert EOS not in g.tokens[:-1]
    assert g.finish_reason == ("stop" if g.tokens[-1] == EOS else "length")
    assert len(g.tokens) == NEW_TOKENS or g.finish_reason == "stop"


def check_logprobs(prompt, g, models):
    by_version = {v: logprobs_by(models[v], [*prompt, *g.tokens], 1.0) for v in set(g.versions)}
    for i, (token, logprob, version) in enumerate(zip(g.tokens, g.logprobs, g.versions, strict=True)):
        assert logprob == pytest.approx(float(by_version[version][len(prompt) + i, token]), abs=1e-5)


def test_requests_aborted_again_and_again_come_to_their_end(server):
    async def harassed():
        async with client_of(server) as client:
            request = asyncio.create_task(client.generate([5, 6, 7], [LONG] * 8))
            while not request.done():
                await asyncio.to_thread(server.order, "/abort_request", {"abort_all": True})
                await asyncio.sleep(0.2)
            return request.result(), client.counts

    generations, counts = asyncio.run(harassed())
    for g in generations:
        assert_whole(g)
    assert counts.resumed > 0 and counts.generated == sum(len(g.tokens) for g in generations)


def test_what_is_cut_is_counted(server):
    async def cut():
        async with client_of(server, cuttable=True) as client:
            kept = asyncio.create_task(client.generate([5, 6, 7], LONG, "kept"))
            wasted = asyncio.create_task(client.generate([8, 9], [LONG] * 8, "wasted"))
            short = await all_are_running(client)
            tokens = await client.cut("wasted")
            with pytest.raises(CutError):
                await wasted
            client.forget("wasted")
            return await kept, tokens + short, client.counts

    (kept,), others, counts = asyncio.run(cut())
    assert_whole(kept)
    assert 8 < others == counts.generated - len(kept.tokens)
