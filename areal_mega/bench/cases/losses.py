"""The losses of packed tokens, next to the same terms and statistics in torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from areal_mega import ops
from areal_mega.bench.case import (
    Case,
    Contender,
    Outputs,
    Plan,
    Shapes,
    Skip,
    Work,
    compiled,
    own_contenders,
    relative_error,
)
from areal_mega.ops import PolicyLossOptions

# Decoupled PPO with everything that recipes with token-level ratios use.
OPTIONS = PolicyLossOptions(
    clip_low=0.2, clip_high=0.28, dual_clip=3.0, behavior="token", behavior_high=2.0, kl_coef=0.001, kl_estimator="k3"
)
_VALUE_CLIP = 0.2
_VALID = 0.8
_LARGEST_LOG_RATIO = 20.0


def policy_loss(shapes: Shapes, device: torch.device) -> list[Plan]:
    """Outputs are the loss, each statistic, and the gradient to the log-probs."""
    return _plans("policy_loss", _policy, shapes, device)


def value_loss(shapes: Shapes, device: torch.device) -> list[Plan]:
    """Outputs are the loss, each statistic, and the gradient to the values."""
    return _plans("value_loss", _value, shapes, device)


def policy_arguments(logprobs: Tensor) -> dict[str, Tensor]:
    """What a policy loss needs beside the log-probs ``[N]``, which the proximal policy's are near to."""
    tokens, device = len(logprobs), logprobs.device

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(tokens, device=device, dtype=logprobs.dtype)

    mask = torch.rand(tokens, device=device) < _VALID
    proximal = logprobs + noise(0.2)
    return {
        "advantages": noise(1.0),
        "proximal_logprobs": proximal,
        "loss_mask": mask,
        "loss_weight": torch.full_like(logprobs, 1.0) / mask.sum(),
        "behavior_logprobs": proximal + noise(0.1),
        "reference_logprobs": logprobs + noise(0.2),
    }


def policy_loss_in_torch(
    logprobs: Tensor,
    entropy: Tensor,
    advantages: Tensor,
    proximal_logprobs: Tensor,
    loss_mask: Tensor,
    loss_weight: Tensor,
    behavior_logprobs: Tensor,
    reference_logprobs: Tensor,
    *,
    options: PolicyLossOptions,
) -> tuple[Tensor, Tensor]:
    """Loss and statistics of `OPTIONS`, with any entropy_coef, as they are written with torch alone."""

    def log_ratio(to: Tensor, of: Tensor) -> Tensor:
        return torch.where(loss_mask, to - of, 0.0).clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)

    assert options.dual_clip is not None and options.behavior_high is not None
    change = log_ratio(logprobs, proximal_logprobs)
    ratio = change.exp()
    unclipped = -ratio * advantages
    bounded = -ratio.clamp(1 - options.clip_low, 1 + options.clip_high) * advantages
    loss = torch.maximum(unclipped, bounded)
    limit = options.dual_clip * advantages.abs()
    dual_clipped = (advantages < 0) & (loss > limit)
    loss = torch.where(dual_clipped, limit, loss)
    mismatch = log_ratio(proximal_logprobs, behavior_logprobs)
    importance = mismatch.exp()
    divergence = log_ratio(logprobs, reference_logprobs)
    kl = torch.expm1(-divergence) + divergence
    weight = importance.clamp(max=options.behavior_high)
    per_token = weight * loss + options.kl_coef * kl - options.entropy_coef * entropy
    total = (loss_weight * torch.where(loss_mask, per_token, 0.0)).sum()
    with torch.no_grad():
        counted = (
            *(loss_mask, ratio, torch.expm1(change) - change, bounded > unclipped, dual_clipped, entropy, kl),
            *(weight, importance > options.behavior_high, mismatch.abs(), advantages),
        )
        statistics = torch.stack([torch.where(loss_mask, x, 0).sum(dtype=torch.float32) for x in counted])
    return total, statistics


def _plans(name: str, build: Callable[..., Case], shapes: Shapes, device: torch.device) -> list[Plan]:
    tokens = 2**12 if shapes == "small" else 2**20
    build = partial(build, tokens, device, shapes)
    return [Plan(name, "forward_backward", f"N={tokens}", torch.float32, device, build)]


def _policy(tokens: int, device: torch.device, shapes: Shapes, peers: bool) -> Case:
    torch.manual_seed(0)
    logprobs = -torch.randn(tokens, device=device).abs() - 0.1
    arguments = {"entropy": torch.randn(tokens, device=device).abs(), **policy_arguments(logprobs)}

    def ours(backend: str) -> Outputs:
        function = partial(ops.policy_loss, options=OPTIONS, backend=backend, **_last_by_name(arguments))
        return _with_gradient(function, logprobs, *list(arguments.values())[:-2])

    contenders, skipped = own_contenders(ours, device, shapes)
    in_torch = partial(policy_loss_in_torch, options=OPTIONS)
    contenders += _torch(in_torch, peers, logprobs, *arguments.values())
    if peers:
        skipped.append(Skip("Liger", "has its GRPO loss from padded logits only, not from packed log-probs"))
    wide = {name: x if x.dtype == torch.bool else x.double() for name, x in arguments.items()}
    loss, statistics, grad, _ = ops.policy_loss_and_gradients(
        logprobs.double(), options=OPTIONS, backend="reference", **wide
    )
    exact = loss, *statistics.unbind(), grad
    work = Work(read=7 * logprobs.nbytes + tokens, written=logprobs.nbytes)
    inputs = logprobs, *arguments.values()
    return Case(contenders, skipped, inputs, work, partial(relative_error, expected=exact))


def _last_by_name(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: arguments[name] for name in ("behavior_logprobs", "reference_logprobs")}


def _value(tokens: int, device: torch.device, shapes: Shapes, peers: bool) -> Case:
    torch.manual_seed(0)
    values = torch.randn(tokens, device=device)
    mask = torch.rand(tokens, device=device) < _VALID
    old, returns = values + 0.2 * torch.randn_like(values), values + torch.randn_like(values)
    constants = old, returns, mask, torch.full_like(values, 1.0) / mask.sum()

    def ours(backend: str) -> Outputs:
        return _with_gradient(partial(ops.value_loss, clip=_VALUE_CLIP, backend=backend), values, *constants)

    contenders, skipped = own_contenders(ours, device, shapes)
    contenders += _torch(_value_loss_in_torch, peers, values, *constants)
    wide = [x if x.dtype == torch.bool else x.double() for x in constants]
    reference = partial(ops.value_loss, clip=_VALUE_CLIP, backend="reference")
    exact = _with_gradient(reference, values.double(), *wide)
    work = Work(read=4 * values.nbytes + tokens, written=values.nbytes)
    return Case(contenders, skipped, (values, *constants), work, partial(relative_error, expected=exact))


def _value_loss_in_torch(
    values: Tensor, old_values: Tensor, returns: Tensor, loss_mask: Tensor, loss_weight: Tensor
) -> tuple[Tensor, Tensor]:
    change, error = values - old_values, (values - returns).square()
    bounded = (old_values + change.clamp(-_VALUE_CLIP, _VALUE_CLIP) - returns).square()
    larger = torch.maximum(error, bounded)
    total = 0.5 * (loss_weight * torch.where(loss_mask, larger, 0.0)).sum()
    with torch.no_grad():
        clipped = (change.abs() > _VALUE_CLIP) & (bounded > error)
        counted = loss_mask, values, returns, error, clipped, returns.square()
        statistics = torch.stack([torch.where(loss_mask, x, 0).sum(dtype=torch.float32) for x in counted])
    return total, statistics


def _torch(function: Callable[..., Any], peers: bool, *arguments: Tensor) -> list[Contender]:
    contenders = [Contender("torch eager", partial(_with_gradient, function, *arguments))]
    if peers:
        contenders.append(Contender("torch.compile", partial(_with_gradient, compiled(function), *arguments)))
    return contenders


def _with_gradient(
    function: Callable[..., tuple[Tensor, Tensor]], differentiable: Tensor, *constants: Tensor
) -> Outputs:
    """Loss, each statistic, and the gradient to the first tensor."""
    leaf = differentiable.detach().requires_grad_()
    loss, statistics = function(leaf, *constants)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), *statistics.unbind(), gradient
