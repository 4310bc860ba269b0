"""What the losses share on a GPU: blocks of per-token tensors whose masked tokens are never used, and sums over them.

Sums are deterministic: each block adds its tokens in a fixed order and writes float64, and one program adds the blocks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Tokens of one program, 8 for each thread of its 4 warps: two loads of 16 bytes of every tensor are under way at once.
BLOCK = 1024

# Tokens next to each other that are added in their own type, within a thread, before float64 takes over.
_RUN = tl.constexpr(4)

# Sums there can be, and blocks that `_add_blocks` takes at a time.
_ROWS, _COLUMNS = 16, 256


def block_sums(x: Tensor, statistics: int) -> Tensor:
    """Room for the sums of each block of ``x [N]``: so many statistics, then the loss, in rows that `store_sums` fills
    four at a time."""
    return x.new_empty(triton.cdiv(statistics + 1, 4) * 4, triton.cdiv(x.numel(), BLOCK), dtype=torch.float64)


def loss_and_statistics(sums: Tensor, statistics: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The blocks of `block_sums` added up: the loss in the dtype of ``like``, so many statistics in float64."""
    loss, totals = like.new_empty(()), sums.new_empty(statistics)
    _add_blocks[(1,)](sums, loss, totals, statistics, sums.shape[1], ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=8)
    return loss, totals


@triton.jit
def block_of(tokens, BLOCK: tl.constexpr):
    """This program's first token, and how many it has. The first is 64 bits wide, like all addresses then are."""
    begin = tl.program_id(0).to(tl.int64) * BLOCK
    return begin, tl.minimum(tokens - begin, BLOCK).to(tl.int32)


@triton.jit
def load_block(x, rest, BLOCK: tl.constexpr):
    """The ``rest`` first tokens at x; a whole block without a mask, which would cut the loads up."""
    lanes = tl.arange(0, BLOCK)
    if rest == BLOCK:
        block = tl.load(x + lanes)
    else:
        block = tl.load(x + lanes, mask=lanes < rest, other=0)
    return block


@triton.jit
def load_valid(x, valid, rest, BLOCK: tl.constexpr):
    """The same, with 0 for masked tokens."""
    return tl.where(valid, load_block(x, rest, BLOCK), 0.0)


@triton.jit
def store_block(x, block, rest, BLOCK: tl.constexpr):
    """The counterpart of `load_block`."""
    lanes = tl.arange(0, BLOCK)
    if rest == BLOCK:
        tl.store(x + lanes, block)
    else:
        tl.store(x + lanes, block, mask=lanes < rest)


@triton.jit
def _runs(x, BLOCK: tl.constexpr):
    return tl.sum(tl.reshape(x, (BLOCK // _RUN, _RUN)), 1)


@triton.jit
def store_sums(sums, row, a, b, c, d, BLOCK: tl.constexpr):
    """Writes the sums of four blocks into ``sums [row to row + 4, program]``. Four at a time: threads meet once."""
    even, odd = tl.join(_runs(a, BLOCK), _runs(c, BLOCK)), tl.join(_runs(b, BLOCK), _runs(d, BLOCK))
    four = tl.reshape(tl.join(even, odd), (BLOCK // _RUN, 4))
    at = (row + tl.arange(0, 4)).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums + at, tl.sum(four.to(tl.float64), 0))


@triton.jit(do_not_specialize=["statistics", "blocks"])
def _add_blocks(sums, loss, totals, statistics, blocks, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.arange(0, ROWS)
    total = tl.zeros((ROWS, COLUMNS), tl.float64)
    for begin in range(0, blocks, COLUMNS):
        column = begin + tl.arange(0, COLUMNS)
        inside = (row <= statistics)[:, None] & (column < blocks)[None, :]
        total += tl.load(sums + row[:, None].to(tl.int64) * blocks + column[None, :], mask=inside, other=0.0)
    whole = tl.sum(total, 1)
    tl.store(totals + row, whole, mask=row < statistics)
    tl.store(loss + tl.zeros_like(row), whole.to(loss.dtype.element_ty), mask=row == statistics)
