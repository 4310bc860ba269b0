"""Per-token estimators of KL(policy || reference)."""

from __future__ import annotations

import torch
from torch import Tensor

from areal_mega.ops.policy_loss import MAX_LOG_RATIO


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, estimator: str) -> Tensor:
    """KL estimate of each token, ``[N]``, from samples of the policy; differentiable in ``logprobs``.

    With x = log pi - log ref: k1 = x (unbiased, high variance), k2 = x^2 / 2 (its gradient is the KL's),
    k3 = exp(-x) - 1 + x (unbiased and never negative). Source: J. Schulman, "Approximating KL
    Divergence", 2020.
    """
    x = (logprobs - reference_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k1":
        return x
    if estimator == "k2":
        return 0.5 * x.square()
    return torch.expm1(-x) + x
