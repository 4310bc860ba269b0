"""Which tokens of stale samples may still teach: a mask over tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from areal_mega.algorithms.advantages import AllReduce

_LARGEST = torch.tensor(torch.finfo(torch.float32).max).view(torch.int32).item()


def second_moment_mask(
    log_ratios: Tensor, advantages: Tensor, loss_mask: Tensor, threshold: float, all_reduce: AllReduce
) -> Tensor:
    """``[N]`` False on the tokens that M2PO leaves out (Zheng et al., 2025, arXiv:2510.01161, algorithm 1).

    Of the tokens that a clip could reach (A > 0 and ratio > 1, or A < 0 and ratio < 1) those with the largest
    squared log-ratios go, until the mean of the others is at most ``threshold``. Equal ones stay or go together, so
    that the mask does not depend on the order of tokens.

    The mean of all values up to a limit grows with the limit. So the limit is found by bisection, on the bits of
    float32 numbers, which are ordered as the numbers are: exact after 31 sums, without a sort over all ranks.

    log_ratios: ``[N]`` of the proximal to the behavior policy. advantages: ``[N]``. loss_mask: ``[N]`` bool.
    all_reduce: sums a tensor over the data-parallel ranks.
    """
    reachable = loss_mask & (advantages * log_ratios > 0)
    moments = log_ratios[reachable].float().square()
    bits = moments.view(torch.int32)

    def fits(limit: int) -> bool:
        kept = moments[bits <= limit].double()
        total, count = all_reduce(torch.stack([kept.sum(), torch.tensor(float(kept.numel())).double()])).tolist()
        return total <= threshold * count

    low, high = -1, int(_LARGEST)  # nothing at all fits; the answer is in [low, high]
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return torch.ones_like(loss_mask).masked_scatter(reachable, bits <= low)
