"""Advantages on packed tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from areal_mega.data import PackedBatch

AllReduce = Callable[[Tensor], Tensor]


def token_rewards(batch: PackedBatch, rewards: Tensor, kl: Tensor | None = None, kl_coef: float = 0.0) -> Tensor:
    """Rewards of each token ``[N]``: the sample's reward on its last generated token, minus the KL penalty.

    batch: needs ``loss_mask [N]``. rewards: ``[B]``. kl: ``[N]`` estimate of each generated token. A sequence without
    generated tokens has no reward.
    """
    mask = batch["loss_mask"]
    per_token = torch.where(mask, -kl_coef * kl, 0.0) if kl is not None else torch.zeros(mask.shape)
    last = last_generated(batch)
    per_token[last[last >= 0]] += rewards[last >= 0]
    return per_token


def last_generated(batch: PackedBatch) -> Tensor:
    """``[B]`` position of the last generated token of each sequence; -1 where there is none."""
    position = torch.where(batch["loss_mask"], torch.arange(batch.num_tokens), -1)
    return torch.full((batch.num_sequences,), -1).scatter_reduce(0, batch.sequence_index, position, "amax")


def sample_advantages(
    rewards: Tensor, groups: Tensor, estimator: str, reward_std: str, greedy_rewards: Tensor | None = None
) -> Tensor:
    """Advantage of each sample over its baseline, ``[B]``, without a critic.

    - ``grpo``: (R - mean of the group) / (std + 1e-6) with the unbiased std of the ``group`` (Shao et al., 2024,
      arXiv:2402.03300) or of the whole ``batch`` (Lite PPO; Liu et al., 2025, arXiv:2508.08221), by reward_std;
      ``none``: without the division (Dr.GRPO; Liu et al., 2025, arXiv:2503.20783).
    - ``rloo``: R - mean of the others of the group (Ahmadian et al., 2024, arXiv:2402.14740).
    - ``remax``: R - reward of the greedy response (Li et al., 2023, arXiv:2310.10505).
    - ``reinforce``: R. So it is for ``distill``, where rewards are not learned from.

    rewards: ``[B]``. groups: ``[B]`` int64, the group of each sample, from 0. greedy_rewards: ``[B]``, for ``remax``.
    """
    if estimator in ("reinforce", "distill"):
        return rewards
    if estimator == "remax":
        assert greedy_rewards is not None
        return rewards - greedy_rewards
    size, whole = int(groups.max()) + 1, torch.zeros_like(groups)
    if estimator == "grpo":
        std_over = {"group": groups, "batch": whole, "none": None}[reward_std]
        return normalize(rewards, groups, std_over, size, eps=1e-6)
    counts = torch.bincount(groups)[groups].double()
    centred = normalize(rewards.double(), groups, None, size)
    return (centred * counts / (counts - 1).clamp(min=1)).to(rewards.dtype)


def teacher_advantages(batch: PackedBatch) -> Tensor:
    """Advantages of on-policy distillation, ``[N]``: log teacher - log policy of each generated token, 0 elsewhere.

    With tokens that the policy sampled, the gradient of their log-probs times these is that of the token-level reverse
    KL, KL(policy || teacher), at the states the policy came to; what a token leads to later does not count (Lu and
    Thinking Machines Lab, "On-Policy Distillation", 2025; Agarwal et al., 2023, arXiv:2306.13649, with reverse KL and
    all data from the student).

    batch: ``loss_mask``, ``reference_logprobs`` (the teacher's), ``proximal_logprobs``, all ``[N]``.
    """
    return torch.where(batch["loss_mask"], batch["reference_logprobs"] - batch["proximal_logprobs"], 0)


def _alone(x: Tensor) -> Tensor:
    return x


def normalize(
    values: Tensor,
    mean_over: Tensor,
    std_over: Tensor | None,
    buckets: int,
    eps: float = 1e-8,
    all_reduce: AllReduce = _alone,
) -> Tensor:
    """``(x - mean) / (std + eps)``, ``[K]``, where mean and unbiased std are those of the value's buckets.

    The std of a bucket is taken around its own mean. Two passes in float64 (means, then squared differences): one pass
    over E[x^2] - E[x]^2 loses all digits when the mean is large. A std of one value is 0.

    values: ``[K]``. mean_over, std_over: ``[K]`` int64 buckets in [0, buckets), the same on all ranks; std_over None:
    no division. all_reduce: sums a tensor over the data-parallel ranks.
    """

    def sums(x: Tensor, over: Tensor) -> Tensor:
        return all_reduce(torch.zeros(buckets, dtype=torch.float64).index_add(0, over, x))

    x = values.double()

    def mean(over: Tensor) -> tuple[Tensor, Tensor]:
        counts = sums(torch.ones_like(x), over)
        return sums(x, over) / counts.clamp(min=1), counts

    result = x - mean(mean_over)[0][mean_over]
    if std_over is not None:
        center, counts = mean(std_over)
        squares = sums((x - center[std_over]).square(), std_over)
        result = result / ((squares / (counts - 1).clamp(min=1)).sqrt()[std_over] + eps)
    return result.to(values.dtype)


def normalize_tokens(batch: PackedBatch, advantages: Tensor, level: str, all_reduce: AllReduce) -> Tensor:
    """Advantages with mean 0 and variance 1 over the generated tokens of all data-parallel ranks, ``[N]``.

    level: over the whole ``batch``, over each ``group`` of samples, or ``mixed``: the group's mean, the batch's
    variance. batch: ``loss_mask [N]``, ``group [B]`` from 0, the count ``groups``.
    """
    mask = batch["loss_mask"]
    groups = batch["group"][batch.sequence_index][mask]
    whole = torch.zeros_like(groups)
    mean_over = whole if level == "batch" else groups
    std_over = groups if level == "group" else whole
    buckets = int(batch.counts["groups"])
    normalized = normalize(advantages[mask], mean_over, std_over, buckets, all_reduce=all_reduce)
    return torch.zeros_like(advantages).masked_scatter(mask, normalized)


def overlong_penalty(lengths: Tensor, longest: int, buffer: float) -> Tensor:
    """``[B]`` soft punishment of long responses: 0, and over the buffer linearly down to -1 at ``longest``.

    The second case of eq. 13 of DAPO (Yu et al., 2025, arXiv:2503.14476).

    lengths: ``[B]`` generated tokens. longest: L_max. buffer: L_cache as a part of L_max, in (0, 1].
    """
    cache = buffer * longest
    return ((longest - cache - lengths.double()) / cache).clamp(-1, 0).to(torch.float32)
