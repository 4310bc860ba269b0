"""Which sequences train together, and on which data-parallel rank.

Mini-batches are drawn from the whole batch and only then cut over the data-parallel ranks, so that the same
batch gives the same optimizer steps for every layout.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from areal_mega import ops


def mini_batches(work: Sequence[int], count: int, ranks: int, seed: int) -> list[list[list[int]]]:
    """Random mini-batches of equal numbers of sequences, each cut into ``ranks`` shares of about equal work.

    work: of each sequence, or of each unit of sequences that stay together: its tokens, or any cost above 0. Where
    their number is not divisible by ``count`` (a workflow may make several samples of one run), sizes differ by one.
    Shares may have any number of sequences; where there are fewer than ranks, some have none.

    Returns ``[count][ranks]`` lists of sequence indices.
    """
    order = list(range(len(work)))
    random.Random(seed).shuffle(order)
    ends = [i * len(order) // count for i in range(count + 1)]
    return [_shares(order[start:end], work, ranks) for start, end in itertools.pairwise(ends)]


def _shares(indices: list[int], work: Sequence[int], ranks: int) -> list[list[int]]:
    part_of = ops.balance([work[i] for i in indices], ranks).tolist()
    return [[i for i, part in zip(indices, part_of, strict=True) if part == rank] for rank in range(ranks)]
