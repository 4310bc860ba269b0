"""The policy loss on a GPU; `areal_mega.ops.policy_loss` says what it computes.

One pass over the tokens, and one over its sums. Where tokens of a sequence share a ratio or a weight, a pass over the
sequences goes before it, and for the ratio another one, for its gradient, after it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from areal_mega.ops.policy_loss_options import MAX_LOG_RATIO, POLICY_STATISTICS, PolicyLossOptions
from areal_mega.triton_kernels.exponential import exponential
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

_LIMIT = tl.constexpr(MAX_LOG_RATIO)

# Sequences have a program each, and most have fewer tokens than this; 16 for each thread of 8 warps.
_SEQUENCE_BLOCK = 4096


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
    """See `areal_mega.ops.policy_loss.policy_loss_and_gradients`; the arguments are checked and contiguous."""
    grad_logprobs, sums = torch.empty_like(logprobs), block_sums(logprobs, len(POLICY_STATISTICS))
    grad_entropy = torch.empty_like(logprobs) if options.entropy_coef else None
    log_ratio, log_behavior = None, None
    with torch.cuda.device_of(logprobs):
        if options.ratio == "sequence":
            log_ratio = torch.empty_like(logprobs)
            _share(loss_mask, cu_seqlens, logprobs, proximal_logprobs, log_ratio, mean=True)
        if options.behavior in ("sequence", "sequence-mean"):
            log_behavior, mean = torch.empty_like(logprobs), options.behavior == "sequence-mean"
            _share(loss_mask, cu_seqlens, proximal_logprobs, behavior_logprobs, log_behavior, mean=mean)
        if logprobs.numel():
            _policy_loss[(sums.shape[1],)](
                logprobs,
                entropy,
                advantages,
                proximal_logprobs,
                loss_mask,
                loss_weight,
                behavior_logprobs,
                reference_logprobs,
                log_ratio,
                log_behavior,
                grad_logprobs,
                grad_entropy,
                sums,
                logprobs.numel(),
                1 - options.clip_low,
                1 + options.clip_high,
                options.dual_clip or 0.0,
                options.behavior_low,
                float("inf") if options.behavior_high is None else options.behavior_high,
                options.kl_coef,
                options.entropy_coef,
                OBJECTIVE=options.objective,
                DUAL_CLIP=options.dual_clip is not None,
                BEHAVIOR_MODE="none" if options.behavior is None else options.behavior_mode,
                KL_ESTIMATOR=options.kl_estimator,
                BLOCK=BLOCK,
                num_warps=4,
            )
        if log_ratio is not None:  # now the gradient that goes through it
            _share(loss_mask, cu_seqlens, log_ratio, None, grad_logprobs, mean=True, add=True)
        loss, statistics = loss_and_statistics(sums, len(POLICY_STATISTICS), like=logprobs)
    return loss, statistics, grad_logprobs, grad_entropy


def _share(
    loss_mask: Tensor,
    cu_seqlens: Tensor | None,
    x: Tensor,
    minus: Tensor | None,
    to: Tensor,
    *,
    mean: bool,
    add: bool = False,
) -> None:
    """The sum, or the mean, of x - minus over the valid tokens of each sequence, written to each of them in ``to``, or
    added to what is there. Masked tokens get 0."""
    assert cu_seqlens is not None
    if len(cu_seqlens) > 1:
        tensors = loss_mask, cu_seqlens, x, minus, to
        _share_over_sequence[(len(cu_seqlens) - 1,)](*tensors, MEAN=mean, ADD=add, BLOCK=_SEQUENCE_BLOCK, num_warps=8)


@triton.jit
def _share_over_sequence(
    loss_mask, cu_seqlens, x, minus, to, MEAN: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr
):
    bounds = cu_seqlens + tl.program_id(0)
    begin, end = tl.load(bounds).to(tl.int64), tl.load(bounds + 1).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    count = tl.zeros((BLOCK,), tl.int32)
    for first in range(begin, end, BLOCK):
        token = first + lanes
        valid = tl.load(loss_mask + token, mask=token < end, other=0) != 0
        own = tl.load(x + token, mask=valid, other=0.0)
        if minus is not None:
            own -= tl.load(minus + token, mask=valid, other=0.0)
        total += own.to(tl.float64)
        count += valid.to(tl.int32)
    shared = tl.sum(total, 0)
    if MEAN:
        shared = shared / tl.maximum(tl.sum(count, 0), 1).to(tl.float64)
    shared = shared.to(to.dtype.element_ty)
    for first in range(begin, end, BLOCK):
        token = first + lanes
        valid = tl.load(loss_mask + token, mask=token < end, other=0) != 0
        own = tl.where(valid, shared, 0.0)
        if ADD:
            own += tl.load(to + token, mask=valid, other=0.0)
        tl.store(to + token, own, mask=token < end)


@triton.jit
def _cut(x):
    return tl.where(x > _LIMIT, _LIMIT, tl.where(x < -_LIMIT, -_LIMIT, x))


@triton.jit(do_not_specialize=["tokens"])
def _policy_loss(
    logprobs,
    entropy,
    advantages,
    proximal_logprobs,
    loss_mask,
    loss_weight,
    behavior_logprobs,
    reference_logprobs,
    shared_log_ratio,
    shared_log_behavior,
    grad_logprobs,
    grad_entropy,
    sums,
    tokens,
    low: tl.float64,
    high: tl.float64,
    dual_clip: tl.float64,
    behavior_low: tl.float64,
    behavior_high: tl.float64,
    kl_coef: tl.float64,
    entropy_coef: tl.float64,
    OBJECTIVE: tl.constexpr,
    DUAL_CLIP: tl.constexpr,
    BEHAVIOR_MODE: tl.constexpr,
    KL_ESTIMATOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of tokens. ``shared_log_ratio`` gets the gradient that goes through the ratio, to be shared as well.

    Masked tokens come in as zeros and with weight 0: what they add to the loss, gradients and most sums is 0 by itself.
    The sums are POLICY_STATISTICS in their order, and the loss; each is written when it is known, to free registers.
    """
    begin, rest = block_of(tokens, BLOCK)
    valid = load_block(loss_mask + begin, rest, BLOCK) != 0
    logprob = load_valid(logprobs + begin, valid, rest, BLOCK)
    proximal = load_valid(proximal_logprobs + begin, valid, rest, BLOCK)
    advantage = load_valid(advantages + begin, valid, rest, BLOCK)
    weight = load_valid(loss_weight + begin, valid, rest, BLOCK)
    dtype: tl.constexpr = logprob.dtype
    nothing = tl.zeros((BLOCK,), dtype)
    one = tl.where(valid, 1.0, nothing)

    # The objective: its loss, and its slopes through the log of the ratio and directly in the log-prob.
    log_ratio = logprob - proximal
    if shared_log_ratio is not None:
        log_ratio = load_valid(shared_log_ratio + begin, valid, rest, BLOCK)
    ratio, _, approx_kl = exponential(_cut(log_ratio))
    least, most = tl.full((), low, dtype), tl.full((), high, dtype)
    bounded = tl.where(ratio > most, most, tl.where(ratio < least, least, ratio))
    dual_clipped = tl.zeros((BLOCK,), tl.int1)
    if OBJECTIVE == "cispo":
        slope = -bounded * advantage
        loss, ratio_slope = slope * logprob, nothing
        clipped = bounded != ratio
    else:
        unclipped, at_limit = -ratio * advantage, -bounded * advantage
        clipped = at_limit > unclipped
        loss, slope = tl.where(clipped, at_limit, unclipped), nothing
        flat = clipped | (tl.abs(log_ratio) > _LIMIT)
        if DUAL_CLIP:
            bound = tl.full((), dual_clip, dtype) * tl.abs(advantage)
            dual_clipped = (advantage < 0) & (loss > bound)
            loss = tl.where(dual_clipped, bound, loss)
            flat = flat | dual_clipped
        ratio_slope = tl.where(flat, 0.0, unclipped)
    store_sums(sums, 0, one, ratio * one, approx_kl, clipped.to(dtype), BLOCK)

    # The weight of old samples.
    behavior, capped, mismatch = one, nothing, nothing
    if behavior_logprobs is not None:
        log_weight = proximal - load_valid(behavior_logprobs + begin, valid, rest, BLOCK)
        mismatch = tl.abs(log_weight)
        if BEHAVIOR_MODE != "none":
            if shared_log_behavior is not None:
                log_weight = load_valid(shared_log_behavior + begin, valid, rest, BLOCK)
            behavior, _, _ = exponential(_cut(log_weight))
            least, most = tl.full((), behavior_low, dtype), tl.full((), behavior_high, dtype)
            if BEHAVIOR_MODE == "truncate":
                inside = ~(behavior > most)
                behavior = tl.where(inside, behavior, most)
            else:
                inside = (behavior >= least) & (behavior <= most)
                behavior = tl.where(inside, behavior if BEHAVIOR_MODE == "mask" else one, 0.0)
            behavior *= one
            capped = tl.where(inside, 0.0, one)
    loss *= behavior
    slope *= behavior

    # The estimate of the KL to the reference.
    kl = nothing
    if reference_logprobs is not None:
        divergence = logprob - load_valid(reference_logprobs + begin, valid, rest, BLOCK)
        kl, kl_slope = _cut(divergence), one
        if KL_ESTIMATOR == "k2":
            kl_slope = kl
            kl = 0.5 * kl * kl
        elif KL_ESTIMATOR == "k3":
            _, minus_one, kl = exponential(-kl)
            kl_slope = -minus_one
        coefficient = tl.full((), kl_coef, dtype)
        loss += coefficient * kl
        slope += coefficient * tl.where(tl.abs(divergence) > _LIMIT, 0.0, kl_slope)

    bonus = nothing
    if entropy is not None:
        bonus = load_valid(entropy + begin, valid, rest, BLOCK)
        loss -= tl.full((), entropy_coef, dtype) * bonus
    store_sums(sums, 4, dual_clipped.to(dtype), bonus, kl, behavior, BLOCK)
    store_sums(sums, 8, capped, mismatch, advantage, weight * loss, BLOCK)

    through_ratio = weight * behavior * ratio_slope
    gradient = weight * slope
    if shared_log_ratio is not None:
        store_block(shared_log_ratio + begin, through_ratio, rest, BLOCK)
    else:
        gradient += through_ratio
    store_block(grad_logprobs + begin, gradient, rest, BLOCK)
    if grad_entropy is not None:
        store_block(grad_entropy + begin, -tl.full((), entropy_coef, dtype) * weight, rest, BLOCK)
