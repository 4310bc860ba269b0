"""What tensor-parallel ranks exchange. Operators know a process group by its name, which a compiled graph can hold;
the empty name stands for this rank alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import GroupName  # a str by another name, and newer than torch 2.6

# Renamed in torch 2.13; the old names warn there.
_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_scatter_sum_into = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def name_of(group: dist.ProcessGroup | None) -> str:
    """A group's name; empty where there is nobody to talk to."""
    return "" if group is None or group.size() == 1 else group.group_name


def group_of(name: str) -> dist.ProcessGroup | None:
    """The group of this name; None for the empty name."""
    return _resolve_process_group(cast("GroupName", name)) if name else None


def stacked(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """``x`` of every rank, in a new first dimension."""
    if group is None or group.size() == 1:
        return x[None]
    gathered = x.new_empty(group.size() * x.shape[0], *x.shape[1:])
    _gather_into(gathered, x.contiguous(), group=group)
    return gathered.unflatten(0, (group.size(), x.shape[0]))


def summed(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """``x`` itself, overwritten with the sum over the ranks."""
    if group is not None:
        dist.all_reduce(x, group=group)
    return x


def scattered_sum(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """This rank's part, of equal parts along the first dimension, of the sum over the ranks."""
    if group is None:
        return x
    part = torch.empty_like(x[: x.shape[0] // group.size()])
    _scatter_sum_into(part, x, group=group)
    return part
