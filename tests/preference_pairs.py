"""Answers of preference pairs for the tests of their losses, and for what is recorded of TRL's."""

import torch

PAIRS = 5


def answers(seed, pairs=PAIRS):
    """Log-probs of the tokens of each answer, of the policy and of the reference: chosen and rejected in turns."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (2 * pairs,), generator=g).tolist()
    rows = [-torch.randn(n, generator=g).abs() for n in lengths]
    return rows, [row + 0.5 * torch.randn(len(row), generator=g) for row in rows]
