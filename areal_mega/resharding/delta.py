"""Only what changed: a message as the difference to the one before it, where that is shorter.

Between two steps most bfloat16 weights stay bit for bit as they were, since the step is below their rounding. Bits are
compared, not values, so the receiver ends with the very bytes of the whole message.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WHOLE, MASK, INDICES = range(3)
HEADER = 4  # int64 numbers: see `Encoded.header`

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_INDEX = torch.int32
_ALIGNMENT = 8  # of the values, so that they can be read where they lie


@dataclass(frozen=True, eq=False)
class Encoded:
    """A message on its way.

    kind: WHOLE: all bytes. MASK: a bit for each word, which says whether it changed, then the changed words. INDICES:
    the changed words' places, then these words. word: bytes of one; the smallest element in the message. changed: words
    that differ from what was sent last; all of a message that is whole because there was none.
    """

    kind: int
    word: int
    changed: int
    payload: Tensor

    @property
    def header(self) -> list[int]:
        """What a receiver must know before the payload: kind, word, changed, bytes of the payload."""
        return [self.kind, self.word, self.changed, self.payload.numel()]


def whole(message: Tensor, word: int) -> Encoded:
    """A message as it is."""
    return Encoded(WHOLE, word, message.numel() // word, message)


def encode(message: Tensor, last: Tensor, word: int) -> Encoded:
    """The shortest form of ``message`` for somebody who has ``last``; both are uint8 ``[bytes]``.

    word: bytes that are compared and sent together; divides the length.
    """
    new, old = message.view(_WORDS[word]), last.view(_WORDS[word])
    different = new != old
    changed = int(different.sum())
    sizes = {
        WHOLE: message.numel(),
        MASK: _padded(-(-new.numel() // 8)) + changed * word,
        INDICES: _padded(changed * _INDEX.itemsize) + changed * word,
    }
    if new.numel() > torch.iinfo(_INDEX).max:
        del sizes[INDICES]
    kind = min(sizes, key=lambda kind: sizes[kind])
    if kind == WHOLE:
        return Encoded(WHOLE, word, changed, message)
    payload = torch.zeros(sizes[kind], dtype=torch.uint8, device=message.device)
    where = _bits(different) if kind == MASK else different.nonzero().flatten().to(_INDEX).view(torch.uint8)
    payload[: where.numel()] = where
    payload[sizes[kind] - changed * word :] = new[different].view(torch.uint8)
    return Encoded(kind, word, changed, payload)


def decode(header: list[int], payload: Tensor, message: Tensor) -> None:
    """Make what was sent last, in ``message``, into what was encoded."""
    kind, word, changed, _ = header
    if kind == WHOLE:
        message.copy_(payload)
        return
    words = message.view(_WORDS[word])
    split = payload.numel() - changed * word
    values = payload[split:].view(_WORDS[word])
    if kind == MASK:
        words[_unpacked(payload[:split], words.numel())] = values
    else:
        words[payload[: changed * _INDEX.itemsize].view(_INDEX).long()] = values


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _bits(flags: Tensor) -> Tensor:
    """Eight flags to a byte, the first in the lowest bit."""
    rows = torch.zeros(-(-flags.numel() // 8) * 8, dtype=torch.uint8, device=flags.device)
    rows[: flags.numel()] = flags
    return (rows.view(-1, 8) << _shifts(flags)).sum(1, dtype=torch.uint8)


def _unpacked(bits: Tensor, count: int) -> Tensor:
    """The first ``count`` flags of `_bits`."""
    return (bits[:, None] >> _shifts(bits)).bitwise_and_(1).view(-1)[:count].bool()


def _shifts(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)
