"""The two passes over rows of logits that every log-prob operation is made of: statistics forward (one read) and the
gradient backward (one read, one write). Between them stand the few numbers of each row that tensor-parallel ranks
exchange; `areal_mega.ops.vocab_parallel` combines those.

Throughout, z = logits / temperature, and only the first ``columns`` columns count: the rest is padding. Backends:
``cpp``, ``triton`` and ``reference``; see `areal_mega.ops.backend.choose`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from areal_mega.ops import native
from areal_mega.ops.backend import choose, in_triton
from areal_mega.ops.checks import check_like
from areal_mega.ops.reference import logit_rows as in_torch


def statistics(logits: Tensor, targets: Tensor, columns: int, temperature: float, backend: str = "") -> Tensor:
    """``[4, T]`` numbers of each row, in one read of ``logits [T, V]``.

    maximum m = max_j z_j; total = sum_j e^(z_j - m); weighted = sum_j e^(z_j - m) (z_j - m); and z of the target,
    or -inf where it is not one of the columns here. A row that is all -inf (or that has no columns) has m = -inf,
    total = weighted = 0. A column with -inf adds 0 to both sums. NaN and +inf stay in their row.

    logits: float16, bfloat16, float32 or float64, rows contiguous (any stride between rows). targets: ``[T]``
    int64, counted from the first column here; any other value is another rank's. The result is float32, for
    float64 logits float64. Raises ValueError for shapes and dtypes other than these.
    """
    _check(logits, targets, columns)
    return choose("logit_rows", _STATISTICS, logits.device, backend)(logits, targets, columns, temperature)


def gradient_(
    logits: Tensor,
    targets: Tensor,
    columns: int,
    temperature: float,
    lse: Tensor,
    entropy: Tensor,
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    out: Tensor,
    backend: str = "",
) -> None:
    """Writes the gradient to the logits into ``out [T, V]``, which may be ``logits`` itself.

    With log p_j = z_j - lse, g and h the upstream gradients of the row's log-prob and entropy H::

        out_j = (g ([j = y] - p_j) - h p_j (log p_j + H)) / temperature

    0 in padded columns, 0 where p_j = 0, 0 in a whole row whose lse is -inf except at its target, and exactly 0 in
    a row whose upstream gradients are 0, whatever its logits are.

    lse, entropy: ``[T]`` over the columns of all ranks, in the dtype of `statistics`, like grad_logprob and
    grad_entropy; None: there is none. out: in the dtype of logits, rows contiguous; the arithmetic is in float32
    (float64) and rounded once. Raises ValueError for shapes and dtypes other than these.
    """
    _check(logits, targets, columns)
    numbers = {"lse": lse, "entropy": entropy, "grad_logprob": grad_logprob, "grad_entropy": grad_entropy}
    for name, x in numbers.items():
        if x is not None:
            check_like(logits, name, x, number_dtype(logits.dtype), len(logits))
    check_like(logits, "out", out, logits.dtype, *logits.shape)
    run = choose("logit_rows", _GRADIENT, logits.device, backend)
    run(logits, targets, columns, temperature, lse, entropy, grad_logprob, grad_entropy, out)


def number_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a row's numbers, and of the arithmetic, for logits of ``dtype``."""
    return torch.promote_types(dtype, torch.float32)


def rows_are_contiguous(x: Tensor) -> bool:
    """Whether the elements of each row of ``x [T, V]`` lie side by side, as the kernels want them."""
    return x.stride(1) == 1 or x.shape[1] <= 1


def check_logits(logits: Tensor) -> None:
    """Raises ValueError unless ``logits`` is ``[T, V]`` in one of the dtypes that there are kernels for."""
    if logits.dim() != 2 or logits.dtype not in _DTYPES:
        raise ValueError(
            f"logits is {logits.dtype} of shape {list(logits.shape)}: "
            f"expected float16, bfloat16, float32 or float64 of shape [T, V]"
        )


def _check(logits: Tensor, targets: Tensor, columns: int) -> None:
    check_logits(logits)
    check_like(logits, "targets", targets, torch.int64, len(logits))
    if not 0 <= columns <= logits.shape[1]:
        raise ValueError(f"columns is {columns}: expected 0 to {logits.shape[1]}, the width of logits")


_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _cpp_statistics(logits: Tensor, targets: Tensor, columns: int, temperature: float) -> Tensor:
    result = logits.new_empty(4, len(logits), dtype=number_dtype(logits.dtype))
    native.cpu(
        f"logit_statistics_{native.suffix(logits.dtype)}",
        logits=_memory("logits", logits),
        targets=targets.contiguous(),
        statistics=result,
        rows=len(logits),
        columns=columns,
        stride=logits.stride(0),
        temperature=temperature,
    )
    return result


def _cpp_gradient(
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
    native.cpu(
        f"logit_gradient_{native.suffix(logits.dtype)}",
        logits=_memory("logits", logits),
        targets=targets.contiguous(),
        lse=lse.contiguous(),
        entropy=entropy.contiguous(),
        grad_logprob=None if grad_logprob is None else grad_logprob.contiguous(),
        grad_entropy=None if grad_entropy is None else grad_entropy.contiguous(),
        out=_memory("out", out),
        rows=len(logits),
        columns=columns,
        width=logits.shape[1],
        stride=logits.stride(0),
        out_stride=out.stride(0),
        temperature=temperature,
    )


def _memory(name: str, x: Tensor) -> Tensor:
    """The stretch of memory from the first row of ``x`` to the last, what lies between rows included."""
    if not rows_are_contiguous(x):
        raise ValueError(f"{name} has strides {list(x.stride())}: expected rows that are contiguous")
    rows, width = x.shape
    return x.detach().as_strided(((rows - 1) * x.stride(0) + width if x.numel() else 0,), (1,))


_STATISTICS = {
    "cpp": _cpp_statistics,
    "triton": in_triton("logit_rows", "statistics"),
    "reference": in_torch.statistics,
}
_GRADIENT = {"cpp": _cpp_gradient, "triton": in_triton("logit_rows", "gradient"), "reference": in_torch.gradient}
