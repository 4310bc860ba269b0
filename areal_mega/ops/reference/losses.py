"""The losses of reinforcement learning in plain torch, token by token formulas on whole tensors.

What stands outside the mask is replaced by 0 before anything is calculated with it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from areal_mega.ops.policy_loss_options import MAX_LOG_RATIO, PolicyLossOptions


def policy_loss(
    logprobs: Tensor,
    entropy: Tensor | None,
    advantages: Tensor,
    proximal_logprobs: Tensor,
    loss_mask: Tensor,
    loss_weight: Tensor,
    behavior_logprobs: Tensor | None,
    reference_logprobs: Tensor | None,
    cu_seqlens: Tensor | None,
    options: PolicyLossOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """See `areal_mega.ops.policy_loss.policy_loss_and_gradients`; the arguments have been checked."""
    zero = torch.zeros_like(logprobs)

    def valid(x: Tensor | None) -> Tensor:
        return zero if x is None else torch.where(loss_mask, x, 0)

    def shared(x: Tensor, mean: bool) -> Tensor:
        assert cu_seqlens is not None
        return _over_sequences(x, loss_mask, cu_seqlens, mean)

    logprobs, proximal, advantages = valid(logprobs), valid(proximal_logprobs), valid(advantages)
    weight, entropy = valid(loss_weight), valid(entropy)
    mismatch = zero if behavior_logprobs is None else proximal - valid(behavior_logprobs)
    divergence = zero if reference_logprobs is None else logprobs - valid(reference_logprobs)
    log_ratio, log_behavior = logprobs - proximal, mismatch
    if options.ratio == "sequence":
        log_ratio = shared(log_ratio, mean=True)
    if options.behavior in ("sequence", "sequence-mean"):
        log_behavior = shared(mismatch, mean=options.behavior == "sequence-mean")

    policy = _objective(log_ratio, logprobs, advantages, options)
    behavior, capped = _behavior_weight(log_behavior, options)
    kl, kl_slope = _kl(divergence, options.kl_estimator)
    per_token = behavior * policy.loss + options.kl_coef * kl - options.entropy_coef * entropy
    loss = (weight * per_token).double().sum().to(weight.dtype)

    through_ratio = weight * behavior * policy.ratio_slope
    if options.ratio == "sequence":
        through_ratio = shared(through_ratio, mean=True)
    grad_logprobs = through_ratio + weight * (behavior * policy.slope + options.kl_coef * kl_slope)
    grad_entropy = -options.entropy_coef * weight if options.entropy_coef else None

    # In the order of POLICY_STATISTICS.
    per_token_statistics = (
        *(loss_mask, policy.ratio, policy.approx_kl, policy.clipped, policy.dual_clipped, entropy, kl),
        *(behavior, capped, mismatch.abs(), advantages),
    )
    statistics = torch.stack([valid(x.double()).sum() for x in per_token_statistics])
    return loss, statistics, grad_logprobs, grad_entropy


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, loss_mask: Tensor, loss_weight: Tensor, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `areal_mega.ops.value_loss.value_loss`; the arguments have been checked. Infinite clip: off."""
    values, old_values, returns, weight = (
        torch.where(loss_mask, x, 0) for x in (values, old_values, returns, loss_weight)
    )
    change, distance = values - old_values, values - returns
    error, bounded = distance.square(), (old_values + change.clamp(-clip, clip) - returns).square()
    clipped = (change.abs() > clip) & (bounded > error)
    loss = (0.5 * weight * torch.where(clipped, bounded, error)).double().sum().to(weight.dtype)
    # In the order of VALUE_STATISTICS.
    sums = [x.double().sum() for x in (loss_mask, values, returns, error, clipped, returns.square())]
    return loss, torch.stack(sums), weight * torch.where(clipped, 0, distance)


class _Objective(NamedTuple):
    """Per token: the loss; its slopes, through the log of the ratio and directly in the log-prob; and what to count."""

    loss: Tensor
    ratio_slope: Tensor
    slope: Tensor
    ratio: Tensor
    approx_kl: Tensor
    clipped: Tensor
    dual_clipped: Tensor


def _objective(log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, options: PolicyLossOptions) -> _Objective:
    d = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio, approx_kl = d.exp(), torch.expm1(d) - d
    bounded = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
    nothing, never = torch.zeros_like(ratio), torch.zeros_like(ratio, dtype=torch.bool)
    if options.objective == "cispo":
        slope = -bounded * advantages
        return _Objective(slope * logprobs, nothing, slope, ratio, approx_kl, bounded != ratio, never)
    unclipped = -ratio * advantages
    clipped = -bounded * advantages > unclipped
    loss, dual_clipped = torch.where(clipped, -bounded * advantages, unclipped), never
    if options.dual_clip is not None:
        bound = options.dual_clip * advantages.abs()
        dual_clipped = (advantages < 0) & (loss > bound)
        loss = torch.where(dual_clipped, bound, loss)
    flat = clipped | dual_clipped | (log_ratio.abs() > MAX_LOG_RATIO)
    return _Objective(loss, torch.where(flat, 0, unclipped), nothing, ratio, approx_kl, clipped, dual_clipped)


def _behavior_weight(log_weight: Tensor, options: PolicyLossOptions) -> tuple[Tensor, Tensor]:
    """The weight of each token's loss, and whether it was truncated, masked or rejected."""
    weight = log_weight.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    if options.behavior is None:
        return torch.ones_like(weight), torch.zeros_like(weight, dtype=torch.bool)
    high = torch.inf if options.behavior_high is None else options.behavior_high
    if options.behavior_mode == "truncate":
        return weight.clamp(max=high), weight > high
    inside = (weight >= options.behavior_low) & (weight <= high)
    return torch.where(inside, weight if options.behavior_mode == "mask" else 1.0, 0.0), ~inside


def _kl(log_ratio: Tensor, estimator: str) -> tuple[Tensor, Tensor]:
    """Estimates of KL(policy || reference) (J. Schulman, "Approximating KL Divergence", 2020) and their slopes."""
    x = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    kl, slope = {
        "k1": lambda: (x, torch.ones_like(x)),
        "k2": lambda: (0.5 * x.square(), x),
        "k3": lambda: (torch.expm1(-x) + x, -torch.expm1(-x)),
    }[estimator]()
    return kl, torch.where(log_ratio.abs() > MAX_LOG_RATIO, 0, slope)


def _over_sequences(x: Tensor, mask: Tensor, cu_seqlens: Tensor, mean: bool) -> Tensor:
    """On every masked token the sum, or the mean, of x over the masked tokens of its sequence; x is 0 elsewhere."""
    bounds = cu_seqlens.long()
    total = torch.segment_reduce(x.double(), "sum", offsets=bounds)
    if mean:
        total = total / torch.segment_reduce(mask.double(), "sum", offsets=bounds).clamp(min=1)
    return torch.where(mask, total.to(x.dtype).repeat_interleave(bounds.diff(), output_size=x.numel()), 0)
