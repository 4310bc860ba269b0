"""GAE by its definition, token by token."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def gae(
    rewards: Tensor,
    values: Tensor,
    cu_seqlens: Tensor,
    gamma: float,
    lam: float,
    lams: Tensor | None,
    critic_lam: float | None,
    loss_mask: Tensor | None,
    bootstrap: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `areal_mega.ops.gae`; the arguments have been checked. lams: ``[B]``, in place of ``lam``."""
    advantages, returns = torch.zeros_like(rewards), torch.zeros_like(rewards)
    mask = [True] * rewards.numel() if loss_mask is None else loss_mask.tolist()
    zero = rewards.new_zeros(())
    for i, (begin, end) in enumerate(pairwise(cu_seqlens.tolist())):
        own_lam = lam if lams is None else lams[i]
        return_lam = own_lam if critic_lam is None else critic_lam
        next_advantage, next_return_advantage = zero, zero
        next_value = zero if bootstrap is None else bootstrap[i]
        for t in reversed(range(begin, end)):
            if not mask[t]:
                continue
            delta = rewards[t] + gamma * next_value - values[t]
            advantages[t] = next_advantage = delta + gamma * own_lam * next_advantage
            next_return_advantage = delta + gamma * return_lam * next_return_advantage
            returns[t] = next_return_advantage + values[t]
            next_value = values[t]
    return advantages, returns
