"""Sequences of very different lengths, as rollouts are."""

from __future__ import annotations

import torch
from torch import Tensor


def ragged_lengths(tokens: int, sequences: int) -> Tensor:
    """``[sequences]`` int64 lengths of 1 or more that add up to ``tokens``: log-normal, the longest several times the
    mean."""
    weight = torch.empty(sequences, dtype=torch.float64).log_normal_(0, 0.8, generator=_generator())
    bounds = (weight.cumsum(0) / weight.sum() * (tokens - sequences)).round().long()
    return bounds.diff(prepend=bounds.new_zeros(1)) + 1


def cu_seqlens(lengths: Tensor, device: torch.device) -> Tensor:
    """``[B + 1]`` int32."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(device, torch.int32)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
