"""Log-probs and entropies of given logits, whose vocabulary may be cut over tensor-parallel ranks."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.distributed.distributed_c10d import _resolve_process_group

from areal_mega.ops.checks import check_like
from areal_mega.ops.logit_rows import check_logits, gradient_, number_dtype, rows_are_contiguous, statistics
from areal_mega.ops.vocab_parallel import VocabShard, combine


def logprob_from_logits(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    vocab_start: int | None = None,
    group: dist.ProcessGroup | None = None,
    inplace_backward: bool = False,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy of each distribution softmax(logits / temperature), in one pass over logits.

    With z = logits / temperature and log p_j = z_j - log sum_i e^(z_i)::

        logprob = log p_y           d logprob / d z_j = [j = y] - p_j
        entropy = -sum_j p_j log p_j    d entropy / d z_j = -p_j (log p_j + entropy)

    A logit of -inf has p = 0 and adds nothing; NaN and +inf stay in their row. Between forward and backward only
    ``logits`` and a few numbers for each row are kept.

    logits: ``[T, V / tp]`` float16, bfloat16, float32 or float64, rows contiguous (others are copied), any stride
    between them. targets: ``[T]`` int64 or int32, ids of the whole vocabulary; one below 0 is ignored: log-prob,
    entropy and gradient 0. temperature: above 0. vocab_size: ids that there are, where ``logits`` is padded beyond;
    None: nothing is. vocab_start: the id of the first column here; None: all ranks hold equally many columns.
    group: the ranks that hold the vocabulary; None: it is all here. inplace_backward: backward overwrites ``logits``
    with their gradient instead of making another tensor of that size. Nothing may use them after that; what autograd
    has saved of them itself raises an error there. backend: see `areal_mega.ops.backend.choose`.

    Returns ``logprob [T], entropy [T]``, float32 (float64 for float64 logits), the same on all ranks of the group.
    Both are differentiable once. Raises ValueError for shapes, dtypes, devices or numbers other than these. A target
    at or above the vocabulary's size raises ValueError on the CPU; on a GPU, which does not wait for it, its log-prob
    is NaN.
    """
    _check(logits, targets, temperature)
    if inplace_backward:
        _check_may_be_overwritten(logits)
    elif not rows_are_contiguous(logits):
        logits = logits.contiguous()
    shard = VocabShard.of(logits.shape[1], group, vocab_start, vocab_size)
    name = "" if group is None else group.group_name
    arguments = logits, targets, temperature, shard.start, shard.columns, shard.size, name
    logprob, entropy, _ = torch.ops.areal_mega.logprob_from_logits(*arguments, inplace_backward, backend)
    return logprob, entropy


def _check(logits: Tensor, targets: Tensor, temperature: float) -> None:
    check_logits(logits)
    if targets.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"targets is {targets.dtype}: expected int64 or int32 of shape [T]")
    check_like(logits, "targets", targets, targets.dtype, len(logits))
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}: expected a number above 0")


def _check_may_be_overwritten(logits: Tensor) -> None:
    leaf = logits if logits._base is None else logits._base
    if leaf.requires_grad and leaf.is_leaf:
        what = "a leaf" if leaf is logits else "a view of a leaf"
        raise ValueError(
            f"inplace_backward would overwrite logits, {what} that requires grad: leave inplace_backward off"
        )
    rows, width = logits.shape
    if not rows_are_contiguous(logits) or (rows > 1 and logits.stride(0) < width):
        raise ValueError(
            f"inplace_backward needs logits whose rows are contiguous and apart, but their strides are "
            f"{list(logits.stride())}: leave inplace_backward off"
        )


def _forward(
    logits: Tensor,
    targets: Tensor,
    temperature: float,
    start: int,
    columns: int,
    size: int,
    group: Any,
    inplace: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """group: a ``group_name``; empty: there is no group."""
    unknown = targets >= size
    if targets.device.type == "cpu" and unknown.any():
        raise ValueError(f"targets has {targets[unknown][0]}: expected ids below {size}, the size of the vocabulary")
    rows = statistics(logits, targets.long() - start, columns, temperature, backend)
    logprob, entropy, lse = combine(rows, _resolve_process_group(group) if group else None)
    ignored = targets < 0
    logprob = logprob.masked_fill(unknown, math.nan).masked_fill(ignored, 0.0)
    return logprob, entropy.masked_fill(ignored, 0.0), lse


def _gradient_(
    logits: Tensor,
    targets: Tensor,
    temperature: float,
    start: int,
    columns: int,
    entropy: Tensor,
    lse: Tensor,
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    backend: str,
    *,
    out: Tensor,
) -> None:
    ignored = targets < 0
    g, h = (None if x is None else x.masked_fill(ignored, 0.0) for x in (grad_logprob, grad_entropy))
    gradient_(logits, targets.long() - start, columns, temperature, lse, entropy, g, h, out, backend)


def _backward(logits: Tensor, *rest: Any) -> Tensor:
    out = torch.empty_like(logits)
    _gradient_(logits, *rest, out=out)
    return out


def _backward_(logits: Tensor, *rest: Any) -> None:
    _gradient_(logits, *rest, out=logits)


def _forward_fake(logits: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    logprob, entropy, lse = (logits.new_empty(len(logits), dtype=number_dtype(logits.dtype)) for _ in range(3))
    return logprob, entropy, lse


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    logits, targets, ctx.temperature, ctx.start, ctx.columns, _, _, ctx.inplace, ctx.backend = inputs
    _, entropy, lse = output
    ctx.save_for_backward(logits, targets, entropy, lse)
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_logprob: Tensor | None, grad_entropy: Tensor | None, _: None) -> tuple:
    logits, targets, entropy, lse = ctx.saved_tensors
    numbers = targets, ctx.temperature, ctx.start, ctx.columns, entropy, lse, grad_logprob, grad_entropy, ctx.backend
    if ctx.inplace:
        torch.ops.areal_mega.logprob_from_logits_backward_(logits, *numbers)
        increment_version(logits)  # whoever saved them as well learns of it
        grad = logits
    else:
        grad = torch.ops.areal_mega.logprob_from_logits_backward(logits, *numbers)
    return grad, *[None] * 8


def _differentiate_twice(ctx: Any, *_: object) -> None:
    raise NotImplementedError("logprob_from_logits has no second derivative")


_BACKWARD_ARGUMENTS = (
    "Tensor targets, float temperature, SymInt start, SymInt columns, Tensor entropy, Tensor lse, "
    "Tensor? grad_logprob, Tensor? grad_entropy, str backend"
)
torch.library.define(
    "areal_mega::logprob_from_logits",
    "(Tensor logits, Tensor targets, float temperature, SymInt start, SymInt columns, SymInt size, str group, "
    "bool inplace_backward, str backend) -> (Tensor logprob, Tensor entropy, Tensor lse)",
)
torch.library.define(
    "areal_mega::logprob_from_logits_backward", f"(Tensor logits, {_BACKWARD_ARGUMENTS}) -> Tensor grad_logits"
)
torch.library.define("areal_mega::logprob_from_logits_backward_", f"(Tensor(a!) logits, {_BACKWARD_ARGUMENTS}) -> ()")
torch.library.impl("areal_mega::logprob_from_logits", ("cpu", "cuda"), _forward)
torch.library.impl("areal_mega::logprob_from_logits_backward", ("cpu", "cuda"), _backward)
torch.library.impl("areal_mega::logprob_from_logits_backward_", ("cpu", "cuda"), _backward_)
torch.library.register_fake("areal_mega::logprob_from_logits", _forward_fake)
torch.library.register_fake("areal_mega::logprob_from_logits_backward", lambda logits, *_: torch.empty_like(logits))
torch.library.register_fake("areal_mega::logprob_from_logits_backward_", lambda *_: None)
torch.library.register_autograd("areal_mega::logprob_from_logits", _differentiate, setup_context=_save)
torch.library.register_autograd("areal_mega::logprob_from_logits_backward", _differentiate_twice)
