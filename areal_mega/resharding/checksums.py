"""Sums by which both sides of a transfer can compare what they have, without sending it.

The sum of a tensor is the sum over its parts, whoever has which: so a trainer's slices and an engine's parameters, cut
in other ways, have the same one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from areal_mega.resharding.coordinates import Box

# Odd multipliers of the index in each dimension, from the fractional digits of the golden ratio, of sqrt(2) and of pi.
_MULTIPLIERS = (0x1E3779B97F4A7C15, 0x6A09E667F3BCC909, 0x243F6A8885A308D3)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksum(values: Tensor, box: Box) -> int:
    """Of the elements of ``box``, which ``values`` has the shape of: sum over x of bits(x) * (1 + sum_d m_d i_d),
    modulo 2^64, as a signed number.

    i_d are the element's indices in the Hugging Face tensor, so that an element in another's place counts.
    """
    bits = values.detach().view(_BITS[values.element_size()])
    total = int(bits.sum(dtype=torch.int64))
    for axis, (start, stop) in enumerate(zip(box.start, box.stop, strict=True)):
        others = [d for d in range(bits.dim()) if d != axis]
        sums = bits.sum(dim=others, dtype=torch.int64) if others else bits.to(torch.int64)
        indices = torch.arange(start, stop, device=values.device)
        total += _MULTIPLIERS[axis] * int((sums * indices).sum())
    return wrapped(total)


def wrapped(number: int) -> int:
    """A number modulo 2^64, between -2^63 and 2^63."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
