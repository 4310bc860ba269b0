"""The policy loss of packed tokens: one pass for loss, gradients and statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from areal_mega.ops import native
from areal_mega.ops.backend import choose, in_triton
from areal_mega.ops.checks import check_bounds, check_cu_seqlens, check_like
from areal_mega.ops.policy_loss_options import MAX_LOG_RATIO, POLICY_STATISTICS, PolicyLossOptions
from areal_mega.ops.reference import losses as in_torch
from areal_mega.ops.upstream import scaled

__all__ = ["MAX_LOG_RATIO", "POLICY_STATISTICS", "PolicyLossOptions", "policy_loss", "policy_loss_and_gradients"]


def policy_loss(
    logprobs: Tensor,
    entropy: Tensor | None,
    advantages: Tensor,
    proximal_logprobs: Tensor,
    loss_mask: Tensor,
    loss_weight: Tensor,
    options: PolicyLossOptions,
    *,
    behavior_logprobs: Tensor | None = None,
    reference_logprobs: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    """Loss and statistics of N packed tokens; `PolicyLossOptions` has the variants and their sources.

    The loss is the sum over tokens whose ``loss_mask`` is True of ``loss_weight[t]`` times::

        w L + kl_coef * k(logprob - reference) - entropy_coef * entropy

        d = logprob - proximal, or its mean over the sequence;  rho = e^d
        clip:  L = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), for A < 0 at most dual_clip |A|
        cispo: L = -clip(rho, 1 - clip_low, 1 + clip_high) A logprob, the clipped ratio being a constant
        w: from e^(proximal - behavior) by behavior and behavior_mode, a constant; without behavior 1
        k1(x) = x,  k2(x) = x^2 / 2,  k3(x) = e^-x - 1 + x

    Log-ratios beyond +-`MAX_LOG_RATIO` are cut to it and pass no gradient on. Nor does a token whose clipped loss is
    larger than its unclipped one, or whose loss is larger than the bound of dual_clip; a token at the bound does.

    Masked tokens are never read, not even NaN, and their gradients are 0. Without valid tokens the loss is 0.

    All tensors are ``[N]`` and float32 or float64, the same for all; loss_mask is bool. entropy: None if its
    coefficient is 0. loss_weight: contains the normaliser, such as 1 / tokens of the global batch, so that losses add
    up over micro-batches and ranks. behavior_logprobs, reference_logprobs: None where the options need none; if
    given, their statistics are taken in any case. cu_seqlens: ``[B + 1]`` int32 or int64, from 0 to N; needed where
    tokens of a sequence share a ratio or weight; on a GPU its values are not checked, which would wait for it.
    backend: ``cpp``, ``triton`` or ``reference``; empty: see `areal_mega.ops.backend.choose`.

    Returns ``loss []``, once differentiable in logprobs and entropy, and the detached ``statistics`` float64: sums
    over the valid tokens, named by `POLICY_STATISTICS`: their number, rho, the estimate rho - 1 - d of the KL to the
    proximal policy, tokens clipped (cispo: with a clipped ratio) and clipped by dual_clip, entropy, k, w, tokens
    whose w was truncated, masked or rejected, abs(proximal - behavior), A. What is not given counts 0.

    Raises ValueError for shapes, dtypes or devices other than these, and for a missing tensor that the options need.
    """
    tensors = _checked(
        options,
        logprobs=logprobs,
        entropy=entropy,
        advantages=advantages,
        proximal_logprobs=proximal_logprobs,
        loss_mask=loss_mask,
        loss_weight=loss_weight,
        behavior_logprobs=behavior_logprobs,
        reference_logprobs=reference_logprobs,
        cu_seqlens=cu_seqlens,
    )
    loss, statistics, _, _ = torch.ops.areal_mega.policy_loss(*tensors, options.numbers(), backend)
    return loss, statistics.detach()


def policy_loss_and_gradients(
    logprobs: Tensor,
    entropy: Tensor | None,
    advantages: Tensor,
    proximal_logprobs: Tensor,
    loss_mask: Tensor,
    loss_weight: Tensor,
    options: PolicyLossOptions,
    *,
    behavior_logprobs: Tensor | None = None,
    reference_logprobs: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "",
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """`policy_loss` without autograd: ``loss, statistics, grad_logprobs [N], grad_entropy [N]``.

    The gradients are those of the loss; that of the entropy is None if its coefficient is 0.
    """
    tensors = _checked(
        options,
        logprobs=logprobs.detach(),
        entropy=None if entropy is None else entropy.detach(),
        advantages=advantages,
        proximal_logprobs=proximal_logprobs,
        loss_mask=loss_mask,
        loss_weight=loss_weight,
        behavior_logprobs=behavior_logprobs,
        reference_logprobs=reference_logprobs,
        cu_seqlens=cu_seqlens,
    )
    loss, statistics, *gradients = torch.ops.areal_mega.policy_loss(*tensors, options.numbers(), backend)
    return loss, statistics, gradients[0], gradients[1] if options.entropy_coef else None


def _checked(options: PolicyLossOptions, logprobs: Tensor, **others: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in the order of the operator, which is that of the arguments, without those not looked at."""
    if logprobs.dim() != 1 or logprobs.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"logprobs is {logprobs.dtype} of shape {list(logprobs.shape)}: expected float32 or float64 of shape [N]"
        )
    needed = {
        "entropy": ("entropy_coef", options.entropy_coef),
        "behavior_logprobs": ("behavior", options.behavior),
        "reference_logprobs": ("kl_coef", options.kl_coef),
        "cu_seqlens": ("ratio or behavior of sequences", options.over_sequences),
    }
    for name, x in others.items():
        if x is None:
            option, used = needed.get(name, (name, True))
            if used:
                raise ValueError(f"{name} is None: expected a tensor, since the options have {option}")
        elif name == "cu_seqlens":
            check_cu_seqlens(x)
            check_like(logprobs, name, x, x.dtype, x.numel())
            if logprobs.numel() >= 2**31:
                raise ValueError(f"{logprobs.numel()} tokens in one call: expected fewer than 2**31, split the batch")
        else:
            check_like(logprobs, name, x, torch.bool if name == "loss_mask" else logprobs.dtype, logprobs.numel())
    if not options.over_sequences:
        others["cu_seqlens"] = None
    return logprobs, *others.values()


def _cpp(
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
    shared_behavior = options.behavior in ("sequence", "sequence-mean")
    loss, grad_logprobs = logprobs.new_empty(()), torch.empty_like(logprobs)
    grad_entropy = torch.empty_like(logprobs) if options.entropy_coef else None
    statistics = logprobs.new_empty(len(POLICY_STATISTICS), dtype=torch.float64)
    native.cpu(
        f"policy_loss_{native.suffix(logprobs.dtype)}",
        logprobs=logprobs,
        entropy=entropy,
        advantages=advantages,
        proximal_logprobs=proximal_logprobs,
        loss_mask=loss_mask,
        loss_weight=loss_weight,
        behavior_logprobs=behavior_logprobs,
        reference_logprobs=reference_logprobs,
        cu_seqlens=cu_seqlens,
        shared_log_ratio=torch.empty_like(logprobs) if options.ratio == "sequence" else None,
        shared_log_behavior=torch.empty_like(logprobs) if shared_behavior else None,
        loss=loss,
        statistics=statistics,
        grad_logprobs=grad_logprobs,
        grad_entropy=grad_entropy,
        tokens=logprobs.numel(),
        sequences=0 if cu_seqlens is None else cu_seqlens.numel() - 1,
        options=options.numbers(),
    )
    return loss, statistics, grad_logprobs, grad_entropy


Implementation = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor | None]]

# Each takes contiguous tensors in the order of the operator (cu_seqlens as int32) and the options, and returns what
# `policy_loss_and_gradients` does.
_IMPLEMENTATIONS: dict[str, Implementation] = {
    "cpp": _cpp,
    "triton": in_triton("policy_loss", "policy_loss"),
    "reference": in_torch.policy_loss,
}


def _run(logprobs: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *others, cu_seqlens, numbers, backend = rest
    if cu_seqlens is not None:
        if cu_seqlens.device.type == "cpu":
            check_bounds(cu_seqlens, logprobs.numel())
        cu_seqlens = cu_seqlens.to(torch.int32)
    implementation = choose("policy_loss", _IMPLEMENTATIONS, logprobs.device, backend)
    tensors = (None if x is None else x.contiguous() for x in (logprobs, *others, cu_seqlens))
    loss, statistics, grad_logprobs, grad_entropy = implementation(*tensors, PolicyLossOptions.from_numbers(numbers))
    return loss, statistics, grad_logprobs, logprobs.new_empty(0) if grad_entropy is None else grad_entropy


def _run_fake(logprobs: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    statistics = logprobs.new_empty(len(POLICY_STATISTICS), dtype=torch.float64)
    entropy_coef = PolicyLossOptions.from_numbers(rest[-2]).entropy_coef
    grad_logprobs = logprobs.new_empty(logprobs.shape)
    return logprobs.new_empty(()), statistics, grad_logprobs, logprobs.new_empty(len(logprobs) if entropy_coef else 0)


def _keep_gradients(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *constants, grad_logprobs, grad_entropy = output
    ctx.mark_non_differentiable(*constants[1:], grad_logprobs, grad_entropy)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad_logprobs, grad_entropy)


def _scale_gradients(ctx: Any, upstream: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
    def through(gradient: Tensor, needed: bool) -> Tensor | None:
        return None if upstream is None or not needed else scaled(gradient, upstream)

    grad_logprobs, grad_entropy = ctx.saved_tensors
    of_logprobs, of_entropy, *constants = ctx.needs_input_grad
    needs_entropy = of_entropy and grad_entropy.numel() > 0
    return through(grad_logprobs, of_logprobs), through(grad_entropy, needs_entropy), *(None for _ in constants)


torch.library.define(
    "areal_mega::policy_loss",
    "(Tensor logprobs, Tensor? entropy, Tensor advantages, Tensor proximal_logprobs, Tensor loss_mask, "
    "Tensor loss_weight, Tensor? behavior_logprobs, Tensor? reference_logprobs, Tensor? cu_seqlens, float[] options, "
    "str backend) -> (Tensor loss, Tensor statistics, Tensor grad_logprobs, Tensor grad_entropy)",
)
torch.library.impl("areal_mega::policy_loss", ("cpu", "cuda"), _run)
torch.library.register_fake("areal_mega::policy_loss", _run_fake)
torch.library.register_autograd("areal_mega::policy_loss", _scale_gradients, setup_context=_keep_gradients)
