"""The critic's loss on packed tokens: one pass for loss, gradient and statistics."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from areal_mega.ops import native
from areal_mega.ops.backend import choose, in_triton
from areal_mega.ops.checks import check_like
from areal_mega.ops.reference import losses as in_torch
from areal_mega.ops.upstream import scaled

VALUE_STATISTICS = ("tokens", "value", "return", "error", "clipped", "return_squared")


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    loss_mask: Tensor,
    loss_weight: Tensor,
    clip: float | None,
    *,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    """Loss and statistics of N packed tokens, with clipped value changes as in OpenAI's PPO.

    The loss is the sum over tokens whose ``loss_mask`` is True of ``loss_weight[t]`` times::

        max((V - R)^2, (V_old + clip(V - V_old, -e, e) - R)^2) / 2

    A token that is clipped (its change is larger than e, and the clipped error than the other) has gradient 0.
    Masked tokens are never read, not even NaN, and their gradients are 0. Without valid tokens the loss is 0.

    values (V), old_values (V_old), returns (R), loss_weight: ``[N]`` float32 or float64, the same for all.
    loss_weight contains the normaliser, so that losses add up over micro-batches and ranks. loss_mask: ``[N]`` bool.
    clip: e, above 0; None: off. backend: ``cpp``, ``triton`` or ``reference``; empty: see
    `areal_mega.ops.backend.choose`.

    Returns ``loss []``, once differentiable in values, and the detached ``statistics`` float64: sums over the valid
    tokens, named by `VALUE_STATISTICS`: their number, V, R, (V - R)^2, tokens clipped, R^2. Explained variance is
    1 - (error/n - (value/n - return/n)^2) / (return_squared/n - (return/n)^2).

    Raises ValueError for shapes, dtypes, devices or a clip other than these.
    """
    if values.dim() != 1 or values.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"values is {values.dtype} of shape {list(values.shape)}: expected float32 or float64 of shape [N]"
        )
    for name, x in (("old_values", old_values), ("returns", returns), ("loss_weight", loss_weight)):
        check_like(values, name, x, values.dtype, values.numel())
    check_like(values, "loss_mask", loss_mask, torch.bool, values.numel())
    if clip is not None and not 0 < clip < math.inf:
        raise ValueError(f"clip is {clip}: expected a number above 0, or None")
    constants = (old_values.detach(), returns.detach(), loss_mask, loss_weight.detach())
    limit = math.inf if clip is None else clip
    loss, statistics, _ = torch.ops.areal_mega.value_loss(values, *constants, limit, backend)
    return loss, statistics.detach()


def _cpp(
    values: Tensor, old_values: Tensor, returns: Tensor, loss_mask: Tensor, loss_weight: Tensor, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    loss, grad_values = values.new_empty(()), torch.empty_like(values)
    statistics = values.new_empty(len(VALUE_STATISTICS), dtype=torch.float64)
    native.cpu(
        f"value_loss_{native.suffix(values.dtype)}",
        values=values,
        old_values=old_values,
        returns=returns,
        loss_mask=loss_mask,
        loss_weight=loss_weight,
        loss=loss,
        statistics=statistics,
        grad_values=grad_values,
        tokens=values.numel(),
        clip=clip,
    )
    return loss, statistics, grad_values


# Each takes contiguous tensors in the order of the operator and the clip, and returns loss, statistics, gradient.
_IMPLEMENTATIONS = {
    "cpp": _cpp,
    "triton": in_triton("value_loss", "value_loss"),
    "reference": in_torch.value_loss,
}


def _run(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, clip, backend = arguments
    implementation = choose("value_loss", _IMPLEMENTATIONS, tensors[0].device, backend)
    return implementation(*(x.contiguous() for x in tensors), clip)


def _run_fake(values: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    statistics = values.new_empty(len(VALUE_STATISTICS), dtype=torch.float64)
    return values.new_empty(()), statistics, values.new_empty(values.shape)


def _keep_gradient(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[2])


def _scale_gradient(ctx: Any, upstream: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
    gradient = None if upstream is None else scaled(ctx.saved_tensors[0], upstream)
    return gradient, *(None for _ in ctx.needs_input_grad[1:])


torch.library.define(
    "areal_mega::value_loss",
    "(Tensor values, Tensor old_values, Tensor returns, Tensor loss_mask, Tensor loss_weight, float clip, "
    "str backend) -> (Tensor loss, Tensor statistics, Tensor grad_values)",
)
torch.library.impl("areal_mega::value_loss", ("cpu", "cuda"), _run)
torch.library.register_fake("areal_mega::value_loss", _run_fake)
torch.library.register_autograd("areal_mega::value_loss", _scale_gradient, setup_context=_keep_gradient)
