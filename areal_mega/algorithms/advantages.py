"""Advantages on packed tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from areal_mega.data import PackedBatch

AllReduce = Callable[[Tensor], Tensor]


def token_rewards(batch: PackedBatch, kl: Tensor | None = None, kl_coef: float = 0.0) -> Tensor:
    """Rewards of each token ``[N]``: the sample's reward on its last generated token, minus the KL penalty.

    batch: needs ``loss_mask [N]`` and ``reward [B]``; ``turn_rewards [N]`` is added where it is there. kl: ``[N]``
    estimate of each generated token.
    """
    mask = batch["loss_mask"]
    rewards = torch.where(mask, -kl_coef * kl, 0.0) if kl is not None else torch.zeros(mask.shape)
    rewards[last_generated(batch)] += batch["reward"]
    return rewards + batch["turn_rewards"] if "turn_rewards" in batch else rewards


def last_generated(batch: PackedBatch) -> Tensor:
    """``[B]`` position of the last generated token of each sequence; every sequence must have one."""
    position = torch.where(batch["loss_mask"], torch.arange(batch.num_tokens), -1)
    last = torch.full((batch.num_sequences,), -1).scatter_reduce(0, batch.sequence_index, position, "amax")
    if bool((last < 0).any()):
        raise ValueError("a sequence has no generated token")
    return last


def group_advantages(rewards: Tensor, groups: Tensor, divide_by_std: bool) -> Tensor:
    """Group-relative advantage of each sample, ``[B]``.

    GRPO: (R - mean) / (std + 1e-6) with the group's unbiased std (Shao et al., 2024, arXiv:2402.03300);
    without the division it is Dr.GRPO (Liu et al., 2025, arXiv:2503.20783).

    rewards: ``[B]``. groups: ``[B]`` the group of each sample.
    """
    _, index, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
    mean = torch.zeros(len(sizes)).index_add(0, index, rewards) / sizes
    centred = rewards - mean[index]
    if not divide_by_std:
        return centred
    squares = torch.zeros(len(sizes)).index_add(0, index, centred.square())
    std = (squares / (sizes - 1).clamp(min=1)).sqrt()
    return centred / (std[index] + 1e-6)


def whiten(advantages: Tensor, mask: Tensor, all_reduce: AllReduce) -> Tensor:
    """Advantages with mean 0 and variance 1 over all masked tokens of all data-parallel ranks, ``[N]``.

    Two passes (mean, then squared differences): one pass over E[x^2] - E[x]^2 loses all digits when the mean
    is large. all_reduce sums a tensor over the data-parallel ranks.
    """
    valid = advantages[mask].double()
    count, total = all_reduce(torch.stack([torch.tensor(float(valid.numel())).double(), valid.sum()]))
    mean = total / count.clamp(min=1)
    variance = all_reduce((valid - mean).square().sum()[None])[0] / (count - 1).clamp(min=1)
    whitened = (advantages.double() - mean) / (variance.sqrt() + 1e-8)
    return torch.where(mask, whitened, 0.0).to(advantages.dtype)
