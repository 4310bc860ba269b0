"""Which sequences go together: parts of about equal tokens, or as few bins as a budget allows. Plans are made on the
CPU; they depend on the lengths alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from areal_mega.ops import native
from areal_mega.ops.backend import choose
from areal_mega.ops.reference import balance as reference

_CPU = torch.device("cpu")


def balance(lengths: Tensor | Sequence[int], parts: int, equal_counts: bool = False, backend: str = "") -> Tensor:
    """``[S]`` int64: the part of each sequence, so that the parts have about equal sums.

    The differencing method of Karmarkar and Karp (1982) for any number of parts: no two parts differ by more than the
    longest sequence. The result depends on the lengths alone. Parts are numbered from the largest sum to the smallest;
    with fewer sequences than parts, the last are empty.

    lengths: ``[S]`` tokens, or any cost, integers from 0 on. parts: 1 or more. equal_counts: the same number of
    sequences in every part; S must then be divisible by parts. backend: ``cpp`` or ``reference``.

    Raises ValueError for lengths or parts other than these.
    """
    costs = _costs(lengths)
    if parts < 1:
        raise ValueError(f"parts is {parts}: expected 1 or more")
    if equal_counts and costs.numel() % parts:
        raise ValueError(
            f"{costs.numel()} sequences cannot be cut into {parts} parts of equal count: "
            "expected a multiple, or equal_counts=False"
        )
    return choose("balance", _BALANCE, _CPU, backend)(costs, parts, equal_counts)


def first_fit(lengths: Tensor | Sequence[int], budget: int, backend: str = "") -> Tensor:
    """``[S]`` int64: the bin of each sequence, longest first, into the first bin that has room for it.

    At most 11/9 of the least possible number of bins, and 6/9 of one more (Dosa, 2007). Bins are numbered as they are
    opened; none is empty. Ties go to the lower index.

    lengths: ``[S]`` tokens, or any cost, integers from 0 to budget. backend: ``cpp`` or ``reference``.

    Raises ValueError for lengths other than these, naming the first.
    """
    costs = _costs(lengths)
    too_long = costs > budget
    if bool(too_long.any()):
        i = int(too_long.int().argmax())
        raise ValueError(f"lengths[{i}] is {int(costs[i])}: expected at most the budget, {budget}")
    return choose("first_fit", _FIRST_FIT, _CPU, backend)(costs, budget)


def _costs(lengths: Tensor | Sequence[int]) -> Tensor:
    if not isinstance(lengths, Tensor):
        lengths = torch.tensor(lengths, dtype=torch.int64)
    if lengths.dim() != 1 or lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"lengths is {lengths.dtype} of shape {list(lengths.shape)}: expected integers of shape [S]")
    costs = lengths.to(_CPU, torch.int64).contiguous()
    if costs.numel() >= 2**31:
        raise ValueError(f"{costs.numel()} lengths in one call: expected fewer than 2**31")
    if bool((costs < 0).any()):
        i = int((costs < 0).int().argmax())
        raise ValueError(f"lengths[{i}] is {int(costs[i])}: expected 0 or more")
    if float(costs.double().sum()) >= 2.0**62:
        raise ValueError("the sum of lengths does not fit into 62 bits: expected smaller numbers")
    return costs


def _balance_cpp(costs: Tensor, parts: int, equal_counts: bool) -> Tensor:
    part_of = torch.empty_like(costs)
    native.cpu("balance", costs=costs, count=costs.numel(), parts=parts, equal_counts=equal_counts, part_of=part_of)
    return part_of


def _first_fit_cpp(costs: Tensor, budget: int) -> Tensor:
    bin_of = torch.empty_like(costs)
    native.cpu("first_fit", costs=costs, count=costs.numel(), budget=budget, bin_of=bin_of)
    return bin_of


_BALANCE = {"cpp": _balance_cpp, "reference": reference.balance}
_FIRST_FIT = {"cpp": _first_fit_cpp, "reference": reference.first_fit}
