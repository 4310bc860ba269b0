"""The two passes over rows of logits on a GPU; `areal_mega.ops.logit_rows` says what they compute.

Both are bound by memory: they read the logits once, 16 bytes a thread at a time, and do about ten instructions a logit.
A row is cut into chunks of columns, each with a program of its own, so that a few rows occupy the whole GPU as well.
How it is cut depends on the columns alone: a row gives the same bits in any company.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from areal_mega.triton_kernels.exponential import exponential

# Forward: 4 warps, which read LANES = 128 threads x 16 bytes side by side, _DEPTH of these at a time. While it waits, a
# thread has 64 bytes under way; at 72 registers some 28 warps fit on a multiprocessor: 56 KiB in flight, where latency
# times bandwidth of an H100 is about 12. Threads exchange nothing before the end of the chunk: 128 logits each.
_WARPS = 4
_DEPTH = 4
_CHUNK = 16384

# Backward: 16 logits a thread, so that they and their gradients are in fewer than 64 registers.
_BLOCK = 2048

# Rows that one program merges. Few: there are as many as tokens, and each waits for its chunks one after the other.
_MERGED_ROWS = 32

_LOG2E = tl.constexpr(math.log2(math.e))
_LN2 = tl.constexpr(math.log(2))
_INFINITY = tl.constexpr(math.inf)

# Where a logit is so far below the maximum, or is -inf, its exponential is 0; times a number it shall be 0 as well.
_FAR = tl.constexpr(-1e4)


def statistics(logits: Tensor, targets: Tensor, columns: int, temperature: float) -> Tensor:
    """See `areal_mega.ops.logit_rows.statistics`."""
    rows, chunks = len(logits), triton.cdiv(max(columns, 1), _CHUNK)
    logits, targets = _checked("logits", logits), targets.contiguous()
    numbers = torch.promote_types(logits.dtype, torch.float32)
    result = logits.new_empty(4, rows, dtype=numbers)
    if not rows:
        return result
    parts = logits.new_empty(3, chunks, rows, dtype=numbers)
    sizes = {"rows": rows, "chunks": chunks, "columns": columns, "stride": logits.stride(0), "scale": 1 / temperature}
    with torch.cuda.device_of(logits):
        grid, lanes = (rows * chunks,), 32 * _WARPS * 16 // logits.element_size()
        _sum_chunks[grid](logits, parts, **sizes, CHUNK=_CHUNK, DEPTH=_DEPTH, LANES=lanes, num_warps=_WARPS)
        grid = (triton.cdiv(rows, _MERGED_ROWS),)
        _merge_chunks[grid](logits, targets, parts, result, **sizes, ROWS=_MERGED_ROWS, num_warps=1)
    return result


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
    rows, width = logits.shape
    logits, out = _checked("logits", logits), _checked("out", out)
    numbers = (None if x is None else x.contiguous() for x in (lse, entropy, grad_logprob, grad_entropy))
    blocks = triton.cdiv(width, _BLOCK)
    if not rows or not width:
        return
    with torch.cuda.device_of(logits):
        _write_gradient[(rows * blocks,)](
            logits,
            targets.contiguous(),
            *numbers,
            out,
            blocks=blocks,
            columns=columns,
            width=width,
            stride=logits.stride(0),
            out_stride=out.stride(0),
            scale=1 / temperature,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )


def _checked(name: str, x: Tensor) -> Tensor:
    if x.stride(1) != 1 and x.shape[1] > 1:
        raise ValueError(f"{name} has strides {list(x.stride())}: expected rows that are contiguous")
    return x.detach()


@triton.jit
def _raised(maximum, total, weighted, to, scale2):
    """Sums relative to ``maximum`` as sums relative to ``to``, at least as large. weighted: of logits in base 2."""
    below = (maximum - to) * scale2
    share = tl.exp2(below)
    return total * share, (weighted + total * tl.maximum(below, _FAR)) * share


@triton.jit(do_not_specialize=["rows", "chunks"])
def _sum_chunks(
    logits,
    parts,
    rows,
    chunks,
    columns,
    stride,
    scale: tl.float64,
    CHUNK: tl.constexpr,
    DEPTH: tl.constexpr,
    LANES: tl.constexpr,
):
    """``parts [3, chunks, rows]``: the largest logit of a chunk and its two sums, relative to it, in base 2.

    Each lane has a maximum and sums of its own, which are only put together at the end of the chunk.
    """
    program = tl.program_id(0).to(tl.int64)
    row, chunk = program // chunks, (program % chunks).to(tl.int32)
    dtype: tl.constexpr = parts.dtype.element_ty
    scale2 = tl.full((), scale * _LOG2E, dtype)
    logits += row * stride
    lanes = tl.arange(0, DEPTH)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    maximum = tl.full((LANES,), -_INFINITY, dtype)
    total = tl.zeros((LANES,), dtype)
    weighted = tl.zeros((LANES,), dtype)
    for begin in range(chunk * CHUNK, tl.minimum((chunk + 1) * CHUNK, columns), DEPTH * LANES):
        column = begin + lanes
        x = tl.load(logits + column, mask=column < columns, other=-_INFINITY).to(dtype)
        raised = tl.maximum(maximum, tl.max(x, 0))
        shift = tl.where(raised == -_INFINITY, 0.0, raised)
        total, weighted = _raised(maximum, total, weighted, shift, scale2)
        maximum = raised
        below = (x - shift[None, :]) * scale2
        exponent = tl.exp2(below)
        total += tl.sum(exponent, 0)
        weighted += tl.sum(exponent * tl.maximum(below, _FAR), 0)
    top = tl.max(maximum, 0)
    total, weighted = _raised(maximum, total, weighted, tl.where(top == -_INFINITY, 0.0, top), scale2)
    plane = chunks.to(tl.int64) * rows
    at = parts + chunk.to(tl.int64) * rows + row
    tl.store(at, top)
    tl.store(at + plane, tl.sum(total, 0))
    tl.store(at + 2 * plane, tl.sum(weighted, 0))


@triton.jit(do_not_specialize=["rows", "chunks", "columns", "stride"])
def _merge_chunks(
    logits, targets, parts, statistics, rows, chunks, columns, stride, scale: tl.float64, ROWS: tl.constexpr
):
    """``statistics [4, rows]`` of whole rows, and the logit of their targets."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    dtype: tl.constexpr = parts.dtype.element_ty
    scale2 = tl.full((), scale * _LOG2E, dtype)
    maximum = tl.full((ROWS,), -_INFINITY, dtype)
    total = tl.zeros((ROWS,), dtype)
    weighted = tl.zeros((ROWS,), dtype)
    plane = chunks.to(tl.int64) * rows
    at = parts + row
    for _ in range(chunks):
        top = tl.load(at, mask=inside, other=-_INFINITY)
        more = tl.load(at + plane, mask=inside, other=0.0)
        more_weighted = tl.load(at + 2 * plane, mask=inside, other=0.0)
        raised = tl.maximum(maximum, top)
        shift = tl.where(raised == -_INFINITY, 0.0, raised)
        total, weighted = _raised(maximum, total, weighted, shift, scale2)
        more, more_weighted = _raised(top, more, more_weighted, shift, scale2)
        total += more
        weighted += more_weighted
        maximum = raised
        at += rows
    target = tl.load(targets + row, mask=inside, other=-1)
    here = (target >= 0) & (target < columns)
    chosen = tl.load(logits + row * stride + target, mask=here, other=-_INFINITY).to(dtype)
    poisoned = (total != total) & (maximum < _INFINITY)  # a maximum passes over NaN
    scale = tl.full((), scale, dtype)
    statistics += row
    tl.store(statistics, tl.where(poisoned, total, maximum * scale), mask=inside)
    tl.store(statistics + rows, total, mask=inside)
    tl.store(statistics + 2 * rows.to(tl.int64), weighted * _LN2, mask=inside)
    tl.store(statistics + 3 * rows.to(tl.int64), chosen * scale, mask=inside)


@triton.jit(do_not_specialize=["blocks"])
def _write_gradient(
    logits,
    targets,
    lse,
    entropy,
    grad_logprob,
    grad_entropy,
    out,
    blocks,
    columns,
    width,
    stride,
    out_stride,
    scale: tl.float64,
    BLOCK: tl.constexpr,
):
    """One block of columns of one row; ``out`` may be ``logits``: each lane reads what only it writes."""
    program = tl.program_id(0).to(tl.int64)
    row, begin = program // blocks, (program % blocks).to(tl.int32) * BLOCK
    dtype: tl.constexpr = lse.dtype.element_ty
    column = begin + tl.arange(0, BLOCK)
    out += row * out_stride
    g = tl.zeros((), dtype)
    h = tl.zeros((), dtype)
    if grad_logprob is not None:
        g = tl.load(grad_logprob + row)
    if grad_entropy is not None:
        h = tl.load(grad_entropy + row)
    gradient = tl.zeros((BLOCK,), dtype)
    if (g != 0) | (h != 0):
        by_logit = tl.full((), scale, dtype)
        row_lse, row_entropy = tl.load(lse + row), tl.load(entropy + row)
        target = tl.load(targets + row)
        x = tl.load(logits + row * stride + column, mask=column < columns, other=-_INFINITY).to(dtype)
        # With lse = -inf all logits are -inf: so that log p is as well, and not NaN.
        log_p = x * by_logit - tl.where(row_lse == -_INFINITY, _INFINITY, row_lse)
        p = tl.exp2(log_p * _LOG2E)
        bounded = tl.maximum(log_p, _FAR)
        gradient = p * (bounded * (-h * by_logit) - (g + h * row_entropy) * by_logit)
        if (target >= begin) & (target < begin + BLOCK):
            # 1 - p would cancel; log p > 0 is only rounding.
            at_target = column == target.to(tl.int32)
            log_p_target = tl.sum(tl.where(at_target, log_p, 0.0), 0)
            log_p_target = tl.where(log_p_target > 0, 0.0, log_p_target)
            p_target, p_minus_1, _ = exponential(tl.where(log_p_target < -80.0, -80.0, log_p_target))
            through_entropy = h * p_target * (tl.maximum(log_p_target, _FAR) + row_entropy)
            gradient = tl.where(at_target, (-g * p_minus_1 - through_entropy) * by_logit, gradient)
        gradient = tl.where(column < columns, gradient, 0.0)
    tl.store(out + column, gradient.to(out.dtype.element_ty), mask=column < width)
