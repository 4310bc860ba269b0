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


def block_sums(x: Tensor, count: int) -> Tensor:
    """Room for ``count`` sums of each block of ``x [N]``."""
    return x.new_empty(count, triton.cdiv(x.numel(), BLOCK), dtype=torch.float64)


def loss_and_statistics(sums: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """The first of `block_sums` added up, in the dtype of ``like``, and the others, in float64."""
    count, blocks = sums.shape
    loss, statistics = like.new_empty(()), sums.new_empty(count - 1)
    _add_blocks[(1,)](sums, loss, statistics, count, blocks, ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=8)
    return loss, statistics


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
def store_sum(sums, row, x, BLOCK: tl.constexpr):
    """Writes the sum of a block into ``sums [row, program]``."""
    runs = tl.sum(tl.reshape(x, (BLOCK // _RUN, _RUN)), 1)
    tl.store(sums + row * tl.num_programs(0) + tl.program_id(0), tl.sum(runs.to(tl.float64), 0))


@triton.jit(do_not_specialize=["count", "blocks"])
def _add_blocks(sums, loss, statistics, count, blocks, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.arange(0, ROWS)
    total = tl.zeros((ROWS, COLUMNS), tl.float64)
    for begin in range(0, blocks, COLUMNS):
        column = begin + tl.arange(0, COLUMNS)
        inside = (row < count)[:, None] & (column < blocks)[None, :]
        total += tl.load(sums + row[:, None].to(tl.int64) * blocks + column[None, :], mask=inside, other=0.0)
    whole = tl.sum(total, 1)
    tl.store(loss + tl.zeros_like(row), whole.to(loss.dtype.element_ty), mask=row == 0)
    tl.store(statistics + row - 1, whole, mask=(row > 0) & (row < count))
