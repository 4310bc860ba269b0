"""Log-prob and entropy from hidden states, without the logits of all tokens and the whole vocabulary at any time."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from areal_mega.ops.collectives import group_of
from areal_mega.ops.linear_arguments import SETTINGS_SCHEMA, Settings, check_targets, head_of, settings_of
from areal_mega.ops.linear_head import HiddenGradient, LinearHead, Upstream, WeightGradient, gather_tokens
from areal_mega.ops.logit_rows import number_dtype
from areal_mega.ops.vocab_parallel import combine, merge

_MIB = 2**20
_WORKSPACE = {"cpu": 16 * _MIB}
_DEFAULT_WORKSPACE = 1024 * _MIB

# The shape of one product. CPU: 4096 columns keep the GEMMs at full speed, and what they write is still in the cache
# when the pass over its rows reads it; the same for any number of tokens, so that sums over blocks do not depend on
# it. GPU: many tokens, so that few passes over the vocabulary write the gradient of the weight.
CPU_COLUMNS, _CPU_ROWS = 4096, 64
_GPU_ROWS = 8192


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    vocab_start: int | None = None,
    group: dist.ProcessGroup | None = None,
    sequence_parallel: bool = False,
    main_grad: Tensor | None = None,
    workspace_bytes: int | None = None,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy of each distribution ``softmax(hidden @ weight.T / temperature)``.

    The logits exist for one block of the vocabulary at a time; backward computes them again. Blocks combine like the
    shards of tensor-parallel ranks (log-sum-exp over blocks), so each block of the weight is read once in forward, and
    its gradient is written once in backward.

    hidden: ``[T, H]`` float32, bfloat16, float16 or float64. weight: ``[V / tp, H]``, this rank's rows of the
    vocabulary. targets: ``[T]`` int64 or int32 ids of the whole vocabulary; a negative one is ignored: log-prob,
    entropy and gradients are 0. temperature: divides the logits.

    vocab_size: ids at and above it are padding; None: nothing is padded. vocab_start: the id of the first row here;
    None: the ranks of ``group`` hold equal shards. group: the tensor-parallel ranks; outputs are the same on all, and
    the gradient to ``hidden`` is complete on each (so no ``copy_to_tensor_model_parallel_region`` before). With
    sequence_parallel, ``hidden`` is ``[T / tp, H]``, this rank's tokens, gathered here; its gradient is of the same
    tokens, and ``targets`` still are all T.

    main_grad: ``[V / tp, H]`` float32 (float64 for float64): backward adds the gradient of ``weight`` to it in place,
    unrounded, and gives ``weight`` none. workspace_bytes: size of the logits that exist at a time; None: 16 MiB on
    the CPU, 1 GiB on a GPU; one ``[T, H]`` and a block of the weight, in float32, come to it.
    backend: of the passes over the logits, see `areal_mega.ops.logit_rows`.

    Returns ``[T]`` each, float32 (float64 for float64). Both gradients are summed in float32 and rounded once; where
    only one is needed, only its GEMM runs. Raises ValueError for arguments that do not fit each other, on the CPU also
    for ids outside the vocabulary; on a GPU their log-prob is NaN.
    """
    settings = settings_of(
        hidden,
        weight,
        targets,
        main_grad,
        temperature=temperature,
        vocab_size=vocab_size,
        vocab_start=vocab_start,
        group=group,
        sequence_parallel=sequence_parallel,
        workspace_bytes=_WORKSPACE.get(hidden.device.type, _DEFAULT_WORKSPACE)
        if workspace_bytes is None
        else workspace_bytes,
        backend=backend,
    )
    logprob, entropy, _ = torch.ops.areal_mega.linear_logprob(hidden, weight, targets, main_grad, *settings)
    return logprob, entropy


def _head(hidden: Tensor, weight: Tensor, targets: Tensor, settings: Settings) -> LinearHead:
    """hidden: of all ranks."""
    most_columns, least_rows = (CPU_COLUMNS, _CPU_ROWS) if hidden.device.type == "cpu" else (len(weight), _GPU_ROWS)
    numbers = settings.workspace_bytes // hidden.element_size()
    columns = max(1, min(most_columns, numbers // max(1, min(len(hidden), least_rows))))
    return head_of(hidden, weight, targets, settings, rows=numbers // columns, columns=columns)


def _forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, main_grad: Tensor | None, *numbers: Any
) -> tuple[Tensor, Tensor, Tensor]:
    settings = Settings(*numbers)
    check_targets(targets, settings.vocab_size)
    group = group_of(settings.group)
    head = _head(gather_tokens(hidden, group, settings.sequence_parallel), weight, targets, settings)
    statistics = head.no_statistics()
    for block in head.blocks():
        for chunk in head.chunks():
            new = head.statistics(head.logits(chunk, block), chunk, block)
            statistics[:, chunk] = merge(torch.stack([statistics[:, chunk], new]))
    logprob, entropy, lse = combine(statistics, group)
    logprob = logprob.masked_fill(targets >= settings.vocab_size, torch.nan)
    return logprob.masked_fill(targets < 0, 0.0), entropy.masked_fill(targets < 0, 0.0), lse


def _backward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    lse: Tensor,
    entropy: Tensor,
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    main_grad: Tensor | None,
    needs_hidden: bool,
    needs_weight: bool,
    *numbers: Any,
) -> tuple[Tensor, Tensor]:
    """A gradient that is not needed, or went to main_grad, is empty."""
    settings = Settings(*numbers)
    group = group_of(settings.group)
    head = _head(gather_tokens(hidden, group, settings.sequence_parallel), weight, targets, settings)
    chunks = head.chunks()
    of_hidden = HiddenGradient(head) if needs_hidden else None
    grad_weight = torch.zeros_like(weight) if needs_weight and main_grad is None else weight.new_empty(0)
    total = grad_weight if main_grad is None else main_grad
    upstream = Upstream(lse, entropy, _of_used(grad_logprob, targets), _of_used(grad_entropy, targets))
    for block in head.blocks():
        of_weight = WeightGradient(total[block], main_grad is not None, len(chunks))
        for chunk in chunks:
            z = head.logits(chunk, block)
            head.to_gradient_(z, chunk, block, upstream.of(chunk))
            if of_hidden:
                of_hidden.add(z, chunk, block)
            if needs_weight:
                of_weight.add(z, head.hidden[chunk])
            del z  # before the next ones are there
        of_weight.finish()
    grad_hidden = of_hidden.finish(group, settings.sequence_parallel) if of_hidden else hidden.new_empty(0)
    return grad_hidden, grad_weight


def _of_used(grad: Tensor | None, targets: Tensor) -> Tensor | None:
    return None if grad is None else grad.masked_fill(targets < 0, 0.0)


def _forward_fake(hidden: Tensor, weight: Tensor, targets: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    logprob = hidden.new_empty(targets.shape, dtype=number_dtype(hidden.dtype))
    return logprob, torch.empty_like(logprob), torch.empty_like(logprob)


def _backward_fake(hidden: Tensor, weight: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    main_grad, needs_hidden, needs_weight = arguments[5:8]
    grad_hidden = torch.empty_like(hidden) if needs_hidden else hidden.new_empty(0)
    return grad_hidden, torch.empty_like(weight) if needs_weight and main_grad is None else weight.new_empty(0)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, targets, main_grad, *ctx.settings = inputs
    _, entropy, lse = output
    ctx.save_for_backward(hidden, weight, targets, lse, entropy)
    ctx.main_grad = main_grad
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_logprob: Tensor | None, grad_entropy: Tensor | None, _: Any) -> tuple:
    needs_hidden, needs_weight, *rest = ctx.needs_input_grad
    grad_hidden, grad_weight = torch.ops.areal_mega.linear_logprob_backward(
        *ctx.saved_tensors, grad_logprob, grad_entropy, ctx.main_grad, needs_hidden, needs_weight, *ctx.settings
    )
    has_weight = needs_weight and ctx.main_grad is None
    return grad_hidden if needs_hidden else None, grad_weight if has_weight else None, *(None for _ in rest)


_NAME, _BACKWARD = "areal_mega::linear_logprob", "areal_mega::linear_logprob_backward"
torch.library.define(
    _NAME,
    f"(Tensor hidden, Tensor weight, Tensor targets, Tensor? main_grad, {SETTINGS_SCHEMA}) "
    "-> (Tensor logprob, Tensor entropy, Tensor lse)",
)
torch.library.define(
    _BACKWARD,
    "(Tensor hidden, Tensor weight, Tensor targets, Tensor lse, Tensor entropy, Tensor? grad_logprob, "
    f"Tensor? grad_entropy, Tensor(a!)? main_grad, bool needs_hidden, bool needs_weight, {SETTINGS_SCHEMA}) "
    "-> (Tensor grad_hidden, Tensor grad_weight)",
)
torch.library.impl(_NAME, ("cpu", "cuda"), _forward)
torch.library.impl(_BACKWARD, ("cpu", "cuda"), _backward)
torch.library.register_fake(_NAME, _forward_fake)
torch.library.register_fake(_BACKWARD, _backward_fake)
torch.library.register_autograd(_NAME, _gradients, setup_context=_setup_context)
