"""Samples of the real engine against `transformers`."""

import pytest
from engine.oracles import assert_greedy_for, assert_logprobs_are_those_of, make_prompts, response_of

from areal_mega.config.errors import UserError
from areal_mega.rollout.server import EngineError

pytestmark = pytest.mark.engine


def test_greedy_equals_transformers(sampler, start_model):
    samples = sampler.generate(make_prompts([1, 5, 24, 11, 5]), samples=1, temperature=0.0)

    assert_greedy_for(start_model, samples)
    assert_logprobs_are_those_of(start_model, samples)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_of_the_distribution_sampled_from(sampler, start_model, temperature):
    samples = sampler.generate(make_prompts([3, 9, 20], seed=1), samples=8, temperature=temperature)

    assert_logprobs_are_those_of(start_model, samples, temperature)


def test_samples_are_aligned_and_complete(sampler, options, tokenizer):
    prompts = make_prompts([4, 7, 12, 24, 1, 2, 3, 5])
    samples = sampler.generate(prompts, samples=32, temperature=1.0)

    assert [s.prompt for s in samples] == [p for p in prompts for _ in range(32)]
    assert [s.group for s in samples] == [g for g in range(8) for _ in range(32)]
    assert len({tuple(s.tokens) for s in samples}) > 240
    for s in samples:
        before, new = len(s.prompt.tokens), response_of(s)
        assert s.tokens[:before] == s.prompt.tokens
        assert s.loss_mask == [False] * before + [True] * len(new)
        assert s.versions == [-1] * before + [0] * len(new)
        assert all(x == 0 for x in s.behavior_logprobs[:before])
        assert all(x < 0 for x in s.behavior_logprobs[before:])
        ended = new[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in new[:-1]
        assert s.finish_reason == ("stop" if ended else "length")
        assert ended or len(new) == options.max_new_tokens
        assert s.text == "".join(chr(0x4E00 + t) for t in (new[:-1] if ended else new))
    assert {s.finish_reason for s in samples} == {"stop", "length"}


def test_a_prompt_too_long_is_named(sampler):
    with pytest.raises(UserError, match=r"p1 has 25 tokens.*rollout.max_prompt_tokens=24"):
        sampler.generate(make_prompts([3, 25]), samples=1, temperature=1.0)


def test_a_refusal_carries_the_engines_words_and_leaves_it_usable(sampler):
    with pytest.raises(EngineError, match=r"HTTP 400.*temperature must be a non-negative"):
        sampler.generate(make_prompts([3, 4]), samples=2, temperature=-1.0)

    assert len(sampler.generate(make_prompts([3]), samples=2, temperature=1.0)) == 2
