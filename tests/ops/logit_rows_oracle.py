"""What rows of logits must give, by autograd in float64, and how far arithmetic in a narrower type may be from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@dataclass(frozen=True)
class Expected:
    """``[T]`` log-prob and entropy, and the gradient ``[T, V]`` of sum(g logprob + h entropy); their largest errors."""

    logprob: Tensor
    entropy: Tensor
    grad: Tensor
    logprob_error: Tensor
    entropy_error: Tensor
    grad_error: Tensor


def expected(logits: Tensor, targets: Tensor, temperature: float = 1.0, g: object = 0.0, h: object = 0.0) -> Expected:
    """g, h: numbers or ``[T]``. Rows need a finite logit, and a target."""
    g, h = (torch.as_tensor(x).double().expand(len(logits)) for x in (g, h))
    z = (logits.double() / temperature).requires_grad_()
    log_p = z.log_softmax(1)
    p = log_p.exp()
    logprob = log_p.gather(1, targets[:, None].long()).squeeze(1)
    entropy = torch.where(p > 0, -p * torch.where(p > 0, log_p, 0.0), 0.0).sum(1)
    reached = torch.where(g != 0, g * torch.where(logprob.isneginf(), 0.0, logprob), 0.0) + h * entropy
    (by_z,) = torch.autograd.grad(reached.sum(), z)
    by_z = by_z + _of_impossible_targets(logprob, p, targets, g)

    # A logit, the log-sum-exp and their difference are each rounded; p takes that over as a relative error.
    unit = torch.finfo(torch.float64 if logits.dtype == torch.float64 else torch.float32).eps
    size = torch.where(z.isfinite(), z, 0.0).abs().detach()
    top = size.amax(1)
    scaled = top[:, None] if temperature != 1 else torch.zeros_like(top)[:, None]
    depth = torch.where(log_p.isfinite(), -log_p, 0.0).detach()
    p, entropy_size = p.detach(), 1 + entropy.detach()
    chosen = torch.zeros_like(p).scatter_(1, targets[:, None].long(), 1.0)
    lost = torch.finfo(torch.float32).smallest_normal  # a smaller p may be 0; here too the last digits are rounded
    own = 8 * torch.finfo(torch.float64).eps * (1 + top)
    direct = g.abs()[:, None] * (chosen - p).abs() + h.abs()[:, None] * p * (depth + entropy_size[:, None])
    shifted = g.abs()[:, None] + h.abs()[:, None] * (1 + depth + entropy_size[:, None])
    by_z_error = 4 * unit * (direct + shifted * p * (2 + size + top[:, None] + depth)) + shifted * lost
    grad = by_z / temperature
    rounding = torch.finfo(logits.dtype)
    return Expected(
        logprob.detach(),
        entropy.detach(),
        grad,
        4 * unit * (1 + logprob.detach().abs().nan_to_num(posinf=0) + scaled[:, 0]) + own,
        4 * unit * (entropy_size + (p * (depth * (1 + depth) + (depth + entropy_size[:, None]) * scaled)).sum(1)) + own,
        by_z_error / temperature + grad.abs() * rounding.eps + rounding.smallest_normal * rounding.eps,
    )


def _of_impossible_targets(logprob: Tensor, p: Tensor, targets: Tensor, g: Tensor) -> Tensor:
    """Where log-prob is -inf autograd has no answer; ours is the limit, g ([j = y] - p)."""
    lost = logprob.isneginf() & (g != 0)
    chosen = torch.zeros_like(p).scatter_(1, targets[:, None].long(), 1.0)
    return torch.where(lost[:, None], g[:, None] * (chosen - p), 0.0).detach()


def assert_within(actual: Tensor, exact: Tensor, error: Tensor) -> None:
    assert actual.shape == exact.shape
    off = (actual.double() - exact).abs()
    off = torch.where(actual.double() == exact, 0.0, off)  # infinities
    worst = (off / error).nan_to_num(nan=torch.inf)
    assert worst.numel() == 0 or worst.max() <= 1, f"{worst.max():.3g} times the error that is allowed"
