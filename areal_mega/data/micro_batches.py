"""Which sequences go through the model together: micro-batches under a token budget."""

from __future__ import annotations

import math

import torch

from areal_mega import ops
from areal_mega.config.errors import UserError
from areal_mega.data.packed import PackedBatch


def micro_batches(batch: PackedBatch, max_tokens: int, least: int = 1) -> list[list[int]]:
    """Cut a batch into micro-batches of about equal numbers of tokens, none above ``max_tokens``.

    As few as fit, or nearly so, but ``least`` if there are so many units. `PackedBatch.units` stay together. The result
    depends on the lengths alone.

    Returns:
        The sequence indices of each micro-batch, ascending; none is empty.

    Raises:
        UserError: one unit alone is longer than ``max_tokens``.
    """
    units, lengths = batch.units, batch.unit_lengths
    longest = max(lengths)
    if longest > max_tokens:
        first, *more = units[lengths.index(longest)]
        raise UserError(
            f"sequence {first} of the batch {'and its partner have' if more else 'has'} {longest} tokens, but "
            f"policy.max_tokens_per_micro_batch={max_tokens}: raise it to {longest} or more, "
            "or lower the longest prompt and response"
        )
    count = max(math.ceil(sum(lengths) / max_tokens), min(least, len(lengths)))
    while True:
        part_of = ops.balance(lengths, count)
        tokens = torch.zeros(count, dtype=torch.int64).index_add(0, part_of, torch.tensor(lengths))
        if int(tokens.max()) <= max_tokens:
            parts = [part_of.eq(part).nonzero().flatten().tolist() for part in range(count)]
            return [[i for unit in part for i in units[unit]] for part in parts]
        count += 1
