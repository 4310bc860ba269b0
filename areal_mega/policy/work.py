"""What a sequence costs to train on, attention included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from areal_mega.config.divisibility import experts_of


def sequence_work(hf: Any, lengths: Sequence[int]) -> list[int]:
    """Multiplications of the forward pass of each sequence, in units of those of one token without attention.

    A token is multiplied once with every parameter it meets: that is the work of matrices. In each layer it is compared
    with the L / 2 tokens before it, on average, and their values are added up: q L more, q being the heads' size in all
    (Narayanan et al., arXiv 2104.04473, section 5.1, halved as attention is causal). Backward is twice as much of both.

    hf: Hugging Face config. lengths: tokens. Rounded to whole tokens, and at least 1.
    """
    head = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
    queries, keys = head * hf.num_attention_heads, head * hf.num_key_value_heads
    width = 3 * hf.intermediate_size
    if experts_of(vars(hf)):
        width = 3 * hf.num_experts_per_tok * (getattr(hf, "moe_intermediate_size", None) or hf.intermediate_size)
    layer = hf.hidden_size * (2 * queries + 2 * keys + width)
    token = hf.num_hidden_layers * layer + hf.vocab_size * hf.hidden_size
    attention = hf.num_hidden_layers * queries / token
    return [max(1, round(n + attention * n * n)) for n in lengths]


def imbalance(work: Sequence[int], plan: Sequence[Sequence[Sequence[int]]]) -> float:
    """The largest over the mean work of a rank, summed over the mini-batches of a step: ranks meet after each.

    plan: ``[mini-batch][rank]`` lists of sequences.
    """
    loads = [[sum(work[i] for i in share) for share in mini_batch] for mini_batch in plan]
    return sum(max(ranks) for ranks in loads) / sum(sum(ranks) / len(ranks) for ranks in loads)
