"""GAE of packed sequences, next to what pads them first; padding and unpadding are part of that."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from areal_mega import ops
from areal_mega.bench.case import Case, Contender, Outputs, Plan, Shapes, Skip, Work, own_contenders, relative_error
from areal_mega.bench.cases.packed import cu_seqlens, ragged_lengths

_GAMMA, _LAMBDA = 1.0, 0.95
_CHUNK = 128


def gae(shapes: Shapes, device: torch.device) -> list[Plan]:
    """Outputs are advantages and returns."""
    tokens, sequences = (2**10, 8) if shapes == "small" else (2**20, 512)
    build = partial(_build, tokens, sequences, device, shapes)
    return [Plan("gae", "forward", f"N={tokens} B={sequences}", torch.float32, device, build)]


def _build(tokens: int, sequences: int, device: torch.device, shapes: Shapes, peers: bool) -> Case:
    torch.manual_seed(0)
    lengths = ragged_lengths(tokens, sequences)
    rewards, values = torch.randn(2, tokens, device=device).unbind()
    bounds, longest = cu_seqlens(lengths, device), int(lengths.max())

    def ours(backend: str) -> Outputs:
        return ops.gae(rewards, values, bounds, _GAMMA, _LAMBDA, backend=backend)

    def padded(compute: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype = torch.float32) -> Outputs:
        return _padded(compute, rewards.to(dtype), values.to(dtype), bounds, longest)

    contenders, skipped = own_contenders(ours, device, shapes)
    contenders.append(Contender("torch eager, padded loop", partial(padded, _loop)))
    if peers:
        contenders.append(Contender("torch eager, padded chunks", partial(padded, _chunks)))
        skipped.append(Skip("torch.compile", "unrolls the steps over time: minutes of compilation"))
    exact = padded(_loop, torch.float64)
    size = rewards.nbytes
    work = Work(read=2 * size, written=2 * size)
    return Case(contenders, skipped, (rewards, values, bounds), work, partial(relative_error, expected=exact))


def _padded(
    compute: Callable[[Tensor, Tensor], Tensor], rewards: Tensor, values: Tensor, bounds: Tensor, longest: int
) -> Outputs:
    """compute: the advantages from rewards and values ``[B, L]``, 0 after each sequence's end."""
    counts = bounds.diff().long()
    position = torch.arange(longest, device=bounds.device)
    valid = position < counts[:, None]
    r, v = (
        torch.zeros(valid.shape, dtype=x.dtype, device=x.device).masked_scatter_(valid, x) for x in (rewards, values)
    )
    advantages = compute(r, v)[valid]
    return advantages, advantages + values


def _deltas(rewards: Tensor, values: Tensor) -> Tensor:
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    return rewards + _GAMMA * following - values


def _loop(rewards: Tensor, values: Tensor) -> Tensor:
    """A step of time after the other, all sequences at once (as verl and AReaL do)."""
    deltas = _deltas(rewards, values)
    advantages, carry = torch.empty_like(deltas), torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        carry = deltas[:, t] + _GAMMA * _LAMBDA * carry
        advantages[:, t] = carry
    return advantages


def _chunks(rewards: Tensor, values: Tensor) -> Tensor:
    """Chunks of time by a product with a triangle of powers, then a loop over chunks (the idea of slime)."""
    deltas = _deltas(rewards, values)
    sequences, length = deltas.shape
    chunks = -(-length // _CHUNK)
    deltas = torch.nn.functional.pad(deltas, (0, chunks * _CHUNK - length)).view(sequences, chunks, _CHUNK)
    steps = torch.arange(_CHUNK, device=deltas.device)
    distance = steps[:, None] - steps
    decay = _GAMMA * _LAMBDA
    powers = torch.where(distance >= 0, decay ** distance.clamp(min=0).to(deltas.dtype), 0.0)
    advantages = deltas @ powers
    to_end = decay ** (_CHUNK - steps).to(deltas.dtype)
    carry = torch.zeros_like(deltas[:, 0, 0])
    for c in reversed(range(chunks)):
        advantages[:, c] += carry[:, None] * to_end
        carry = advantages[:, c, 0]
    return advantages.view(sequences, -1)[:, :length]
