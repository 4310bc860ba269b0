"""The two passes over rows of logits, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def statistics(logits: Tensor, targets: Tensor, columns: int, temperature: float) -> Tensor:
    """See `areal_mega.ops.logit_rows.statistics`."""
    z = _scaled(logits, columns, temperature)
    rows, own = torch.arange(len(z), device=z.device), (targets >= 0) & (targets < columns)
    target = z.new_full(z.shape[:1], -torch.inf)
    target[own] = z[rows[own], targets[own]]
    if not columns:
        return torch.stack([target, torch.zeros_like(target), torch.zeros_like(target), target])
    maximum = z.amax(1)
    below = z - maximum[:, None]
    exponent = torch.where(z == -torch.inf, 0.0, below.exp())
    weighted = torch.where(z == -torch.inf, 0.0, exponent * below)
    return torch.stack([maximum, exponent.sum(1), weighted.sum(1), target])


def gradient(
    logits: Tensor,
    targets: Tensor,
    columns: int,
    temperature: float,
    lse: Tensor,
    entropy: Tensor,
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    out: Tensor,
) -> None:
    """See `areal_mega.ops.logit_rows.gradient_`."""
    log_p = _scaled(logits, columns, temperature) - lse[:, None]
    impossible = log_p.isneginf() | lse.isneginf()[:, None]
    log_p = torch.where(impossible, -torch.inf, log_p)
    p = log_p.exp()
    grad = torch.zeros_like(p)
    if grad_logprob is not None:
        chosen = torch.arange(columns, device=p.device) == targets[:, None]
        grad += grad_logprob[:, None] * torch.where(chosen, -torch.expm1(log_p), -p)
    if grad_entropy is not None:
        grad -= grad_entropy[:, None] * torch.where(impossible, 0.0, p * (log_p + entropy[:, None]))
    unused = torch.ones_like(lse, dtype=torch.bool)
    for upstream in (grad_logprob, grad_entropy):
        if upstream is not None:
            unused &= upstream == 0
    out[:, columns:] = 0
    out[:, :columns] = torch.where(unused[:, None], 0.0, grad / temperature)


def _scaled(logits: Tensor, columns: int, temperature: float) -> Tensor:
    z = logits[:, :columns]
    return z.to(torch.promote_types(z.dtype, torch.float32)) / temperature
