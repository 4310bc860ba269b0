"""Deltas: whoever has the last message ends with every byte of the new one, whatever changed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from areal_mega.resharding.delta import INDICES, MASK, WHOLE, decode, encode

WORDS = {2: torch.bfloat16, 4: torch.float32}


@given(
    words=st.integers(1, 300),
    word=st.sampled_from([1, 2, 4, 8]),
    fraction=st.sampled_from([0.0, 0.005, 0.05, 0.3, 0.95, 1.0]),
    seed=st.integers(0, 1000),
)
def test_the_receiver_ends_with_every_byte(words, word, fraction, seed):
    generator = torch.Generator().manual_seed(seed)
    last = torch.randint(256, (words, word), dtype=torch.uint8, generator=generator)
    new = last.clone()
    for row in torch.rand(words, generator=generator).lt(fraction).nonzero().flatten().tolist():
        new[row, seed % word] ^= 1 + seed % 255
    differ = sum(int(not torch.equal(a, b)) for a, b in zip(new, last, strict=True))
    encoded = encode(new.view(-1), last.view(-1), word)
    assert encoded.changed == differ
    assert encoded.payload.numel() <= new.numel()
    held = last.view(-1).clone()
    decode(encoded.header, encoded.payload.clone(), held)
    assert torch.equal(held, new.view(-1))


@pytest.mark.parametrize(("fraction", "kind"), [(0.0, INDICES), (0.002, INDICES), (0.2, MASK), (1.0, WHOLE)])
@pytest.mark.parametrize("word", [2, 4])
def test_the_shortest_form_is_chosen(word, fraction, kind):
    last = torch.randn(10_000, dtype=WORDS[word])
    new = torch.where(torch.rand(10_000) < fraction, last + 10, last)
    encoded = encode(new.view(torch.uint8), last.view(torch.uint8), word)
    assert encoded.kind == kind
    changed = (new != last).sum().item()
    shortest = min(10_000 * word, 10_000 / 8 + changed * word, changed * (4 + word))
    assert shortest <= encoded.payload.numel() <= shortest + 16


def test_numbers_that_are_equal_but_not_the_same_bits_are_sent():
    last, new = torch.tensor([0.0, float("nan"), 1.0]), torch.tensor([-0.0, float("nan"), 1.0])
    encoded = encode(new.view(torch.uint8), last.view(torch.uint8), 4)
    assert encoded.changed == 1  # the NaN is the same bits, though not equal to itself
    decode(encoded.header, encoded.payload, last.view(torch.uint8))
    assert torch.signbit(last[0])
