"""A vocabulary cut over tensor-parallel ranks: who has which columns, and the exchange of four numbers a token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from areal_mega.ops.collectives import stacked


@dataclass(frozen=True)
class VocabShard:
    """This rank's columns: ids ``start`` to ``start + columns`` of a vocabulary of ``size``; the rest is padding."""

    start: int
    columns: int
    size: int

    @classmethod
    def of(cls, width: int, group: dist.ProcessGroup | None, start: int | None, size: int | None) -> VocabShard:
        """width: columns held here, with padding. start: None: the ranks of ``group`` hold equal shards. size: None:
        nothing is padded, and the shards are equal."""
        rank, ranks = (0, 1) if group is None else (group.rank(), group.size())
        start = rank * width if start is None else start
        size = ranks * width if size is None else size
        return cls(start, max(0, min(width, size - start)), size)


def merge(parts: Tensor) -> Tensor:
    """The statistics ``[4, T]`` of all columns together, from those of R sets of columns, ``[R, 4, T]``.

    See `areal_mega.ops.logit_rows.statistics`; `nothing` is the set without columns.
    """
    maximum, total, weighted, target = parts.unbind(1)
    top = maximum.amax(0)
    below = torch.where(maximum.isneginf(), 0.0, maximum - top)  # such a set has total 0
    share = below.exp()
    total_all = (total * share).sum(0)
    return torch.stack([top, total_all, ((weighted + below * total) * share).sum(0), target.amax(0)])


def nothing(tokens: int, like: Tensor) -> Tensor:
    """The statistics ``[4, T]`` of no columns, in the dtype that `logit_rows.statistics` has for ``like``."""
    statistics = like.new_zeros(4, tokens, dtype=torch.promote_types(like.dtype, torch.float32))
    statistics[::3] = -torch.inf  # maximum and target
    return statistics


def combine(statistics: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob of the target, entropy and log-sum-exp, ``[T]`` each, over the columns of all ranks.

    statistics: ``[4, T]`` of this rank, see `areal_mega.ops.logit_rows.statistics`. With L = log sum_j e^(z_j - m)
    and E = sum_j p_j (z_j - m) over all columns, entropy = L - E: no difference of large numbers, whatever offset the
    logits have. A row of -inf only has log-prob -inf and entropy 0.
    """
    top, total, weighted, target = merge(stacked(statistics, group)).unbind(0)
    dead = top.isneginf()
    log_total = total.log()
    lse = torch.where(dead, -torch.inf, top + log_total)
    logprob = torch.where(dead, -torch.inf, target - top - log_total)
    return logprob, torch.where(dead, 0.0, log_total - weighted / total), lse
