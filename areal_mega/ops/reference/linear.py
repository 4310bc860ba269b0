"""The fused linear operations by their definition: all logits at once."""

from __future__ import annotations

from torch import Tensor


def linear_logprob(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, vocab_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """See `areal_mega.ops.linear_logprob`, for one rank; differentiable. Best in float64."""
    log_p = (hidden @ weight[:vocab_size].t() / temperature).log_softmax(-1)
    used = targets >= 0
    logprob = log_p.gather(1, targets.clamp(min=0)[:, None].long()).squeeze(1)
    return logprob.where(used, 0.0), -(log_p.exp() * log_p).sum(-1).where(used, 0.0)
