"""The output layer of a language model, whose logits exist for some tokens and some of the vocabulary at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from areal_mega.ops import logit_rows
from areal_mega.ops.collectives import scattered_sum, stacked, summed
from areal_mega.ops.gemm import add_product_, product
from areal_mega.ops.logit_rows import number_dtype
from areal_mega.ops.vocab_parallel import nothing


class Upstream(NamedTuple):
    """What the gradient to a token's logits is made of, ``[T]`` each."""

    lse: Tensor
    entropy: Tensor
    grad_logprob: Tensor | None
    grad_entropy: Tensor | None

    def of(self, chunk: slice) -> Upstream:
        """Of these tokens."""
        logprob, entropy = (None if grad is None else grad[chunk] for grad in self[2:])
        return Upstream(self.lse[chunk], self.entropy[chunk], logprob, entropy)


@dataclass(frozen=True)
class LinearHead:
    """This rank's rows of the output matrix, and the tokens that go through them.

    hidden: ``[T, H]``, the tokens of all ranks. weight: ``[C, H]``, without what pads the vocabulary. targets:
    ``[T]`` int64, counted from the first row here; outside [0, C): another rank's, or ignored. rows, columns: of
    the logits that one product computes.
    """

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    temperature: float
    rows: int
    columns: int
    backend: str

    def chunks(self) -> list[slice]:
        """All tokens, ``rows`` at a time; for no tokens one chunk of none."""
        return list(_slices(len(self.hidden), self.rows)) or [slice(0, 0)]

    def blocks(self) -> list[slice]:
        """All rows of the weight, ``columns`` at a time."""
        return list(_slices(len(self.weight), self.columns))

    def logits(self, chunk: slice, block: slice) -> Tensor:
        """``[t, c]``, not yet divided by the temperature."""
        return product(self.hidden[chunk], self.weight[block].t())

    def statistics(self, logits: Tensor, chunk: slice, block: slice) -> Tensor:
        """``[4, t]``, see `areal_mega.ops.logit_rows.statistics`."""
        targets = self.targets[chunk] - block.start
        return logit_rows.statistics(logits, targets, logits.shape[1], self.temperature, self.backend)

    def no_statistics(self) -> Tensor:
        """``[4, T]``, of no columns."""
        return nothing(len(self.hidden), like=self.hidden)

    def to_gradient_(self, logits: Tensor, chunk: slice, block: slice, upstream: Upstream) -> None:
        """Overwrites logits with their gradient. upstream: of these tokens."""
        targets = self.targets[chunk] - block.start
        of_logits = logits, targets, logits.shape[1], self.temperature
        logit_rows.gradient_(*of_logits, *upstream, out=logits, backend=self.backend)


class HiddenGradient:
    """The gradient to the hidden states: a sum over blocks of the vocabulary and over ranks, in float32, rounded
    once."""

    def __init__(self, head: LinearHead) -> None:
        self._weight = head.weight
        self._sum = torch.zeros_like(head.hidden, dtype=number_dtype(head.hidden.dtype))

    def add(self, grad_logits: Tensor, chunk: slice, block: slice) -> None:
        """grad_logits: ``[t, c]``."""
        add_product_(self._sum[chunk], grad_logits, self._weight[block])

    def finish(self, group: dist.ProcessGroup | None, sequence_parallel: bool) -> Tensor:
        """``[T, H]``, complete; with sequence parallelism this rank's tokens, ``[T / ranks, H]``."""
        whole = scattered_sum(self._sum, group) if sequence_parallel else summed(self._sum, group)
        return whole.to(self._weight.dtype)


class WeightGradient:
    """The gradient to some rows of the weight: a sum over chunks of tokens, in float32, rounded once."""

    def __init__(self, out: Tensor, has_more: bool, chunks: int) -> None:
        """out: ``[c, H]``, zeros for the result, or if ``has_more``, a wide sum that this one is added to. chunks: how
        many will be added."""
        self._out, self._single = out, chunks == 1 and not has_more
        wide = number_dtype(out.dtype)
        self._sum = out if self._single or out.dtype == wide else torch.zeros_like(out, dtype=wide)

    def add(self, grad_logits: Tensor, hidden: Tensor) -> None:
        """grad_logits: ``[t, c]`` of a chunk of tokens. hidden: ``[t, H]``."""
        if self._single:
            torch.mm(grad_logits.t(), hidden, out=self._out)
        else:
            add_product_(self._sum, grad_logits.t(), hidden)

    def finish(self) -> None:
        """Afterwards ``out`` has the result."""
        if self._sum is not self._out:
            self._out.copy_(self._sum)


def gather_tokens(hidden: Tensor, group: dist.ProcessGroup | None, sequence_parallel: bool) -> Tensor:
    """``[T, H]`` of all ranks from this rank's tokens, if they are only a part."""
    return stacked(hidden, group).flatten(0, 1) if sequence_parallel else hidden


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
