import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from areal_mega.config.options import AlgorithmOptions
from areal_mega.data import Prompt, Sample
from areal_mega.data.sample import Turn
from areal_mega.trainers.experience import (
    adaptive_of,
    pack_samples,
    policy_loss_of,
    share_of,
    shares_of,
    with_advantages,
    with_rewards,
)


def alone(x):
    return x


def sample(prompt, response, reward=0.0, group=0):
    n = prompt + response
    return Sample(
        prompt=Prompt("1", [1] * prompt, "?", "7"),
        group=group,
        tokens=list(range(n)),
        loss_mask=[t >= prompt for t in range(n)],
        behavior_logprobs=[-float(t) if t >= prompt else 0.0 for t in range(n)],
        versions=[0 if t >= prompt else -1 for t in range(n)],
        finish_reason="stop",
        text="7",
        reward=reward,
    )


def test_samples_are_packed_with_the_engine_s_facts():
    batch = pack_samples([sample(2, 1, reward=1.0), sample(1, 2, reward=0.5, group=1)])
    assert batch.tokens.tolist() == [0, 1, 2, 0, 1, 2]
    assert batch["loss_mask"].tolist() == [False, False, True, False, True, True]
    assert batch["behavior_logprobs"].tolist() == [0, 0, -2, 0, -1, -2]
    assert batch["reward"].tolist() == [1.0, 0.5] and batch["group"].tolist() == [0, 1]
    assert batch["truncated"].tolist() == [False, False] and batch["correct"].dtype == torch.bool


def two_turns(first, second, final):
    """prompt, said, said, seen, said; the reward of each turn and of the whole."""
    one = sample(1, 4, reward=final)
    one.loss_mask[3] = False
    one.turns = [Turn(1, 3, first), Turn(4, 5, second)]
    return one


def test_with_a_critic_turn_rewards_stand_on_the_last_token_of_their_turn_beside_the_final_reward():
    options = AlgorithmOptions(advantage="gae", gamma=0.0, normalize_advantages="none")
    batch = pack_samples([two_turns(0.5, -0.25, final=2.0), sample(1, 2, reward=1.0)])
    batch = with_rewards(batch, options, 9).with_fields(
        proximal_logprobs=torch.zeros(batch.num_tokens), values=torch.zeros(batch.num_tokens)
    )
    advantages = with_advantages(batch, options, adaptive_of(options), alone)["advantages"]
    assert advantages.tolist() == [0, 0, 0.5, 0, 1.75, 0, 0, 1.0]


def test_without_turn_rewards_a_batch_has_no_field_for_them():
    assert "turn_rewards" not in pack_samples([two_turns(0.0, 0.0, final=2.0)])


def test_without_a_critic_a_sample_counts_for_all_it_earned():
    options = AlgorithmOptions(advantage="grpo", reward_std="none")
    batch = pack_samples([two_turns(0.5, 0.5, final=1.0), two_turns(0.0, 0.0, final=1.0)])
    batch = with_rewards(batch, options, 9).with_fields(proximal_logprobs=torch.zeros(batch.num_tokens))
    advantages = with_advantages(batch, options, adaptive_of(options), alone)["advantages"]
    assert advantages.tolist() == [0, 0.5, 0.5, 0, 0.5, 0, -0.5, -0.5, 0, -0.5]


@given(st.integers(1, 3), st.integers(1, 3), st.randoms())
def test_shares_of_all_ranks_make_the_batch_with_the_same_global_counts(count, ranks, rng):
    samples = [sample(rng.randint(1, 4), rng.randint(1, 9)) for _ in range(count * ranks * 2)]
    batch = pack_samples(samples)
    shares = shares_of(batch, batch.lengths.tolist(), count, ranks, seed=5)
    last = share_of(batch, count, ranks - 1, ranks, seed=5)
    assert shares[-1].sizes == last.sizes and shares[-1].batch.tokens.equal(last.batch.tokens)
    assert sum(s.batch.num_tokens for s in shares) == batch.num_tokens
    assert all(s.counts == shares[0].counts for s in shares)
    for m in range(count):
        parts = [s.mini_batch(m, "token-mean") for s in shares]
        assert sum(float(p["loss_mask"].sum()) for p in parts) == shares[0].counts[m]["tokens"]
        assert sum(float(p["loss_weight"].sum()) for p in parts) == pytest.approx(1.0)


def test_group_advantages_reach_the_generated_tokens_only():
    options = AlgorithmOptions(advantage="grpo", reward_std="none")
    batch = with_rewards(pack_samples([sample(1, 2, 1.0), sample(1, 1, 0.0)]), options, 8)
    assert with_advantages(batch, options, adaptive_of(options), alone)["advantages"].tolist() == [0, 0.5, 0.5, 0, -0.5]


def test_gae_with_kl_as_reward():
    options = AlgorithmOptions(
        use_reference=True, kl_coef=0.1, kl_in="reward", kl_estimator="k1", normalize_advantages="none"
    )
    batch = with_rewards(pack_samples([sample(1, 2, reward=1.0)]), options, 8).with_fields(
        values=torch.tensor([0.0, 0.2, 0.4]),
        proximal_logprobs=torch.tensor([0.0, -1.0, -2.0]),
        reference_logprobs=torch.tensor([0.0, -1.5, -1.0]),
    )
    scored = with_advantages(batch, options, adaptive_of(options), alone)
    # Rewards -0.1 * 0.5 and 1 - 0.1 * (-1); with gamma = lambda = 1 the return is what is still to come.
    assert scored["returns"].tolist() == pytest.approx([0.0, -0.05 + 1.1, 1.1])
    assert scored["advantages"].tolist() == pytest.approx([0.0, 1.05 - 0.2, 1.1 - 0.4])


def test_the_kl_in_the_reward_has_the_adapted_weight():
    options = AlgorithmOptions(advantage="reinforce", kl_coef=0.1, kl_in="reward", normalize_advantages="none")
    batch = with_rewards(pack_samples([sample(1, 1, reward=1.0)]), options, 8).with_fields(
        proximal_logprobs=torch.tensor([0.0, -1.0]), reference_logprobs=torch.tensor([0.0, -1.5])
    )
    adaptive = adaptive_of(options)
    adaptive.kl.coef = 0.2
    k3 = math.exp(-0.5) - 1 + 0.5
    assert with_advantages(batch, options, adaptive, alone)["advantages"].tolist() == pytest.approx([0, 1 - 0.2 * k3])
    assert policy_loss_of(options, 0.2).options.kl_coef == 0  # it is in the reward


def test_a_long_response_is_punished_before_it_is_compared():
    options = AlgorithmOptions(advantage="grpo", reward_std="none", overlong_buffer=0.5, overlong_penalty=0.4)
    batch = with_rewards(pack_samples([sample(1, 4, 1.0), sample(1, 8, 1.0)]), options, 8)
    assert batch["reward"].tolist() == pytest.approx([0.2, -0.2])


def test_a_batch_of_truncated_responses_only_has_no_loss():
    options = AlgorithmOptions(advantage="grpo", mask_truncated=True, aggregation="sequence-mean")
    samples = [replace(sample(1, n, n / 2), finish_reason="length") for n in (2, 3)]
    share = share_of(with_rewards(pack_samples(samples), options, 8), 1, 0, 1, seed=0)
    assert share.counts == [{"tokens": 0, "correct_tokens": 0, "sequences": 0}]
    zeros = torch.zeros(share.batch.num_tokens)
    share = share.with_fields(proximal_logprobs=zeros)
    batch = replace(share, batch=with_advantages(share.batch, options, adaptive_of(options), alone)).mini_batch(
        0, options.aggregation
    )
    loss, statistics = policy_loss_of(options, 0.0)(batch, {"logprobs": zeros, "entropy": zeros})
    assert loss == 0 and all(x == 0 for x in statistics.values())
