"""Collectives of pieces of unequal size, which NCCL knows and gloo does not. Experts cut over ranks need them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def adjust(mappings: Any) -> None:
    """Give Megatron's ``tensor_parallel.mappings`` these in the place of its own, where the sizes are given."""
    own_gather, own_reduce = mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim

    def gather(x: Tensor, group: Any, output_split_sizes: list[int] | None = None, *rest: Any) -> Tensor:
        if output_split_sizes is None or group.size() == 1:
            return own_gather(x, group, output_split_sizes, *rest)
        return all_gather(x, group, output_split_sizes)

    def reduce(x: Tensor, group: Any, input_split_sizes: list[int] | None = None, *rest: Any) -> Tensor:
        if input_split_sizes is None or group.size() == 1:
            return own_reduce(x, group, input_split_sizes, *rest)
        return reduce_scatter(x, group, input_split_sizes)

    mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim = gather, reduce


def all_gather(x: Tensor, group: dist.ProcessGroup, sizes: list[int]) -> Tensor:
    """``[sizes[rank], ...]`` → ``[sum of sizes, ...]``, rank after rank."""
    longest = max(sizes)
    padded = x.new_zeros(longest, *x.shape[1:])
    padded[: len(x)] = x
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded, group=group)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


def reduce_scatter(x: Tensor, group: dist.ProcessGroup, sizes: list[int]) -> Tensor:
    """``[sum of sizes, ...]`` → this rank's ``[sizes[rank], ...]`` of the sum over ranks."""
    total = x.clone()
    dist.all_reduce(total, group=group)
    return total.split(sizes)[group.rank()].clone()
