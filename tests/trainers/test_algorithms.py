"""Each preset of configs/algorithm, from samples to loss and gradient, against its paper's formulas in float64.

For one rank and one micro-batch, and for two ranks with one sequence in each micro-batch: the result is the same.
"""

import json
from dataclasses import replace
from pathlib import Path

import by_definition
import pytest
import torch
from by_definition import LONGEST, responses
from omegaconf import OmegaConf
from ranks import on_ranks

from areal_mega.algorithms.losses import ValueLoss
from areal_mega.config.command_line import algorithms, compose_config
from areal_mega.data import Prompt, Sample
from areal_mega.trainers.experience import (
    adaptive_of,
    pack_samples,
    policy_loss_of,
    share_of,
    with_advantages,
    with_anchor,
    with_rewards,
)

PROMPT = 2
VERSION = 7  # of the proximal policy
INPUTS = ("now", "entropy")
TRL = json.loads((Path(__file__).parents[1] / "trl_losses.json").read_text())
LAYOUTS = {"one-rank": (1, None), "two-ranks-one-sequence-each": (2, 1)}


def options_of(name, *more):
    config = compose_config("ppo", [f"+algorithm={name}", f"rollout.max_new_tokens={LONGEST}", *more])
    return OmegaConf.to_object(config.algorithm)


def samples_of(data):
    """The responses as samples; a token's id is its place among all tokens of all samples."""
    samples, start = [], 0
    for r in data:
        n = PROMPT + len(r)
        samples.append(
            Sample(
                prompt=Prompt("1", [0] * PROMPT, "?", "7"),
                group=10 * r.group,
                tokens=list(range(start, start + n)),
                loss_mask=[False] * PROMPT + [True] * len(r),
                behavior_logprobs=[0.0] * PROMPT + r.behavior,
                versions=[-1] * PROMPT + [VERSION - age for age in r.ages],
                finish_reason="length" if r.truncated else "stop",
                text="",
                reward=r.reward,
                greedy_reward=r.greedy_reward,
                correct=r.correct,
            )
        )
        start += n
    return samples


def column(data, name):
    """``[N]`` float32 numbers of all tokens by id, NaN in the prompts, which nothing may read."""
    rows = [[float("nan")] * PROMPT + torch.as_tensor(getattr(r, name)).tolist() for r in data]
    return torch.tensor([x for row in rows for x in row], dtype=torch.float32)


def gradient(x):
    return torch.zeros_like(x) if x.grad is None else x.grad


def run(options, data, ranks, micro):
    """Loss and gradients in log-probs and entropy by token id, and the critic's loss, over all ranks."""

    def one(rank, all_reduce):
        batch = with_rewards(pack_samples(samples_of(data)), options, LONGEST)
        share = share_of(batch, 1, rank, ranks, seed=3)
        columns = {f"{n}_logprobs": column(data, n)[share.batch.tokens] for n in ("proximal", "reference")}
        share = share.with_fields(**columns, values=column(data, "values")[share.batch.tokens])
        if options.proximal != "recomputed":
            share = replace(share, batch=with_anchor(share.batch, options.proximal, VERSION))
        adaptive = adaptive_of(options)
        share = replace(share, batch=with_advantages(share.batch, options, adaptive, all_reduce))
        whole = share.mini_batch(0, options.aggregation, options.aggregation_length)
        loss_of = policy_loss_of(options, adaptive.kl.coef)
        now, entropy = (column(data, name).requires_grad_() for name in INPUTS)
        loss, value_loss, statistics = torch.zeros(()), torch.zeros(()), {}
        step = micro or whole.num_sequences
        for i in range(0, whole.num_sequences, step):
            part = whole.select(range(i, i + step))
            outputs = {"logprobs": now[part.tokens], "entropy": entropy[part.tokens]}
            part_loss, part_statistics = loss_of(part, outputs)
            loss = loss + part_loss
            statistics = {k: v + statistics.get(k, 0) for k, v in part_statistics.items()}
            if options.has_critic:
                value_loss = value_loss + ValueLoss(None)(part, {"values": torch.zeros(part.num_tokens)})[0]
        loss.backward()
        return loss.detach(), gradient(now), gradient(entropy), value_loss, statistics

    results = on_ranks(one, ranks)
    return [sum(x[1:], x[0]) for x in list(zip(*results, strict=True))[:4]], [r[4] for r in results]


def compare(options, data, expected, layout):
    """Loss and gradients with those that autograd finds for ``expected``."""
    expected.backward()
    compare_numbers(options, data, expected.item(), *([gradient(getattr(r, n)) for r in data] for n in INPUTS), layout)


def compare_numbers(options, data, expected, now, entropy, layout):
    (loss, *gradients, _), _ = run(options, data, *LAYOUTS[layout])
    size = 0.0
    for rows, got in zip((now, entropy), gradients, strict=True):
        wanted = torch.cat([x for row in rows for x in (row.new_zeros(PROMPT), row)])
        torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=1e-6 * wanted.abs().max().item())
        size += wanted.abs().sum().item()
    # Terms of either sign cancel in the loss: their rounding stays.
    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-6 * size)


def test_every_preset_has_a_definition():
    assert set(algorithms()) == set(by_definition.ALGORITHMS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", by_definition.ALGORITHMS)
def test_loss_and_gradient_are_those_of_the_paper(name, layout):
    # MIS asks for the product of all ratios of a response: with much noise none would be left.
    data = responses(seed=1, stale={"mis": 0.1}.get(name, 0.3))
    compare(options_of(name), data, by_definition.ALGORITHMS[name](data), layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_ratio_to_the_policy_that_sampled(layout):
    data = responses(seed=10)
    compare(options_of("ppo", "algorithm.proximal=behavior"), data, by_definition.behavior_ppo(data), layout)


KL = ["algorithm.use_reference=true", "algorithm.kl_coef=0.1"]
# What TRL calls dapo has no penalty of long responses; its own dual clip is called delta.
AS_IN_TRL = {
    "dapo": ["dapo", "algorithm.overlong_buffer=null", "algorithm.dual_clip=null"],
    "dual-clip": ["grpo", "algorithm.dual_clip=1.3"],
    "tis": ["[grpo,tis]", "algorithm.behavior_high=1.1", "algorithm.aggregation=token-mean"],
    "kl": ["grpo", *KL],
    "kl-unbiased": ["grpo", *KL, "algorithm.kl_unbiased=true"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", TRL["cases"])
def test_loss_and_gradient_are_those_of_trl(case, layout):
    """Recorded from TRL itself, see record_trl.py."""
    data = responses(TRL["seed"], TRL["groups"], TRL["size"])
    recorded = TRL["cases"][case]
    rows = torch.tensor(recorded["gradient"], dtype=torch.float64).split([len(r) for r in data])
    none = [torch.zeros_like(row) for row in rows]
    compare_numbers(options_of(*AS_IN_TRL.get(case, [case])), data, recorded["loss"], rows, none, layout)


def with_kl(data, coefficient, estimator, unbiased=False):
    """GRPO's loss, and the mean of the estimates in the same way."""
    losses = []
    for r in data:
        x = r.now - torch.tensor(r.reference, dtype=torch.float64)
        kl = {"k1": x, "k2": x**2 / 2, "k3": torch.exp(-x) - 1 + x}[estimator]
        losses.append(list(kl * by_definition.ratios(r) if unbiased else kl))
    return by_definition.grpo(data) + coefficient * by_definition.sequence_mean(losses)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("estimator", "unbiased"), [("k2", False), ("k3", False), ("k1", True), ("k2", True), ("k3", True)]
)
def test_kl_in_the_loss(estimator, unbiased, layout):
    data = responses(seed=2)
    options = options_of("grpo", *KL, f"algorithm.kl_estimator={estimator}", f"algorithm.kl_unbiased={unbiased}")
    compare(options, data, with_kl(data, 0.1, estimator, unbiased), layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_kl_in_the_reward(layout):
    data = responses(seed=3)
    options = options_of("reinforce-plus-plus", *KL)
    compare(options, data, by_definition.reinforce_plus_plus(data, kl_coef=0.1), layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_entropy_bonus(layout):
    data = responses(seed=4)
    expected = by_definition.grpo(data) - 0.01 * by_definition.sequence_mean([list(r.entropy) for r in data])
    compare(options_of("grpo", "algorithm.entropy_coef=0.01"), data, expected, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_truncated_responses_count_in_their_group_but_not_in_the_loss(layout):
    data = responses(seed=5)
    assert 0 < sum(r.truncated for r in data) < len(data)
    advantages = by_definition.grpo_advantages(data, by_definition.rewards_of(data))
    kept = [(r, a) for r, a in zip(data, advantages, strict=True) if not r.truncated]
    expected = by_definition.sequence_mean([by_definition.ppo_clip(r, a) for r, a in kept])
    compare(options_of("grpo", "algorithm.mask_truncated=true"), data, expected, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sapo_with_truncated_weights(layout):
    """The soft gate is outside of the kernel, which knows the weights."""
    data = responses(seed=6)
    losses = []
    for r, row in zip(data, by_definition.grpo_advantages(data, by_definition.rewards_of(data)), strict=True):
        weights = [min(w, 1.2) for w in by_definition.stale_weights(r)]
        taus = [1.0 if a > 0 else 1.05 for a in row]
        gates = [4 / t * torch.sigmoid(t * (x - 1)) for t, x in zip(taus, by_definition.ratios(r), strict=True)]
        losses.append([-w * g * a for w, g, a in zip(weights, gates, row, strict=True)])
    compare(options_of("sapo", "algorithm.behavior_cap=1.2"), data, by_definition.sequence_mean(losses), layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["ppo", "vapo"])
def test_the_critic_learns_monte_carlo_returns(name, layout):
    """VAPO's advantages have lambda below 1, its critic's targets have not; here the values play no part in them."""
    data = responses(seed=7)
    (_, _, _, loss), _ = run(options_of(name), data, *LAYOUTS[layout])
    tokens = sum(map(len, data))
    assert loss.item() == pytest.approx(sum(len(r) * r.reward**2 / 2 for r in data) / tokens, rel=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_value_norm_gives_the_critic_returns_around_zero(layout):
    data = responses(seed=8)
    (_, _, _, loss), _ = run(options_of("ppo", "algorithm.value_norm=0.9"), data, *LAYOUTS[layout])
    assert loss.item() == pytest.approx(0.5, rel=1e-5)  # half the variance of what is normalised by these very returns


def test_statistics_of_all_ranks_and_micro_batches_add_up_to_the_same():
    data, options = responses(seed=9), options_of("vapo")
    _, (whole,) = run(options, data, *LAYOUTS["one-rank"])
    _, parts = run(options, data, *LAYOUTS["two-ranks-one-sequence-each"])
    assert whole.keys() == parts[0].keys() and whole["positive_nll"] > 0
    for name, value in whole.items():
        assert sum(p[name] for p in parts).item() == pytest.approx(value.item(), rel=1e-5), name
