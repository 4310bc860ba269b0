"""New weights from this process in the running engine."""

import pytest
from engine.oracles import assert_greedy_for, assert_logprobs_are_those_of, make_prompts
from models import tiny_model

from areal_mega.bench.full_gather import FullWeightTransport
from areal_mega.rollout.server import EngineError

pytestmark = pytest.mark.engine


@pytest.fixture
def weights_restored(transport, start_model):
    yield
    transport.send(start_model.named_parameters(), version=0)


def versions_of(samples):
    return {v for s in samples for v, m in zip(s.versions, s.loss_mask, strict=True) if m}


@pytest.mark.usefixtures("weights_restored")
def test_the_engine_generates_with_the_new_weights(sampler, transport):
    prompts = make_prompts([5, 9, 24])
    for version in (1, 2):
        model = tiny_model("qwen3", seed=version)
        transport.send(model.named_parameters(), version)

        samples = sampler.generate(prompts, samples=1, temperature=0.0)
        assert_greedy_for(model, samples)
        assert_logprobs_are_those_of(model, samples)
        assert versions_of(samples) == {version}


@pytest.mark.usefixtures("weights_restored")
def test_a_model_larger_than_the_buffer_goes_in_chunks(sampler, server):
    model = tiny_model("qwen3", seed=3)
    FullWeightTransport(server, buffer_bytes=10_000).send(model.named_parameters(), version=3)

    samples = sampler.generate(make_prompts([5, 9]), samples=1, temperature=0.0)
    assert_greedy_for(model, samples)
    assert versions_of(samples) == {3}


@pytest.fixture
def open_session(server, monkeypatch):
    """Another weight update is under way; afterwards the engine, which others share, is as before."""
    monkeypatch.setattr(server, "_failure", None)
    server.order("/begin_weight_update")
    yield
    monkeypatch.undo()
    server.order("/end_weight_update")


@pytest.mark.usefixtures("open_session")
def test_after_a_failed_update_the_engine_is_not_used(sampler, transport, start_model):
    with pytest.raises(EngineError, match="session is already open"):
        transport.send(start_model.named_parameters(), version=9)

    with pytest.raises(EngineError, match="unknown since update 9 failed"):
        sampler.generate(make_prompts([3]), samples=1, temperature=0.0)
