"""The critic's loss on a GPU, in one pass; `areal_mega.ops.value_loss` says what it computes."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from areal_mega.triton_kernels.token_blocks import (
    BLOCK,
    block_of,
    block_sums,
    load_block,
    load_valid,
    loss_and_statistics,
    store_block,
    store_sums,
)

_STATISTICS = 6


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, loss_mask: Tensor, loss_weight: Tensor, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `areal_mega.ops.value_loss.value_loss`; the arguments are checked and contiguous. Infinite clip: off."""
    grad_values, sums = torch.empty_like(values), block_sums(values, _STATISTICS)
    with torch.cuda.device_of(values):
        if values.numel():
            tensors = values, old_values, returns, loss_mask, loss_weight, grad_values, sums
            _value_loss[(sums.shape[1],)](*tensors, values.numel(), clip, BLOCK=BLOCK, num_warps=4)
        loss, statistics = loss_and_statistics(sums, _STATISTICS, like=values)
    return loss, statistics, grad_values


@triton.jit(do_not_specialize=["tokens"])
def _value_loss(
    values,
    old_values,
    returns,
    loss_mask,
    loss_weight,
    grad_values,
    sums,
    tokens,
    clip: tl.float64,
    BLOCK: tl.constexpr,
):
    begin, rest = block_of(tokens, BLOCK)
    valid = load_block(loss_mask + begin, rest, BLOCK) != 0
    value = load_valid(values + begin, valid, rest, BLOCK)
    old = load_valid(old_values + begin, valid, rest, BLOCK)
    target = load_valid(returns + begin, valid, rest, BLOCK)
    weight = load_valid(loss_weight + begin, valid, rest, BLOCK)
    limit = tl.full((), clip, value.dtype)

    change, distance = value - old, value - target
    within = tl.where(change > limit, limit, tl.where(change < -limit, -limit, change))
    bounded = old + within - target
    error, bounded_error = distance * distance, bounded * bounded
    clipped = (tl.abs(change) > limit) & (bounded_error > error)
    store_block(grad_values + begin, weight * tl.where(clipped, 0.0, distance), rest, BLOCK)

    # VALUE_STATISTICS in their order, and the loss.
    loss = 0.5 * weight * tl.where(clipped, bounded_error, error)
    store_sums(sums, 0, valid.to(value.dtype), value, target, error, BLOCK)
    store_sums(sums, 4, clipped.to(value.dtype), target * target, loss, tl.zeros_like(value), BLOCK)
