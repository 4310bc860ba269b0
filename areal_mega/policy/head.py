"""The critic's head."""

from __future__ import annotations

import torch
from torch import Tensor


class ValueHead(torch.nn.Module):
    """The critic's head: one number per token. Every TP rank holds all of it."""

    def __init__(self, hidden_size: int, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(1, hidden_size, generator=generator) / (hidden_size + 1) ** 0.5
        self.weight = torch.nn.Parameter(weight.to(device, dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        """``[T, H]`` → ``[T]`` float32."""
        return (hidden @ self.weight.t()).squeeze(1).float()
