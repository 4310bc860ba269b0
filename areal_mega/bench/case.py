"""What is measured: one operation on given inputs, and everything that can compute it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from areal_mega.ops.backend import BACKENDS, interpreting

# In the order of what the case compares with; None: this contender does not compute it.
Outputs = Sequence[Tensor | None]

# ours: a backend of the operation. peer: others' way to the same results. partial: computes less, or is a combination
# of our own operations; it is shown, but is nobody's best peer.
Role = Literal["ours", "peer", "partial"]

Shapes = Literal["small", "real"]
SHAPES: tuple[Shapes, ...] = ("small", "real")


class NotApplicable(Exception):
    """Why a contender cannot take part, in words for the reader of the results."""


@dataclass(frozen=True)
class Contender:
    """One way to compute the operation.

    run: does it once and returns the outputs. reset: restores what ``run`` overwrites; it is not timed.
    """

    name: str
    run: Callable[[], Outputs]
    role: Role = "peer"
    reset: Callable[[], object] | None = None


@dataclass(frozen=True)
class Skip:
    """A contender that does not take part, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Work:
    """What no implementation can do without: bytes of memory and floating-point operations of matrix products."""

    read: int = 0
    written: int = 0
    flop: int = 0


@dataclass(frozen=True)
class Case:
    """An operation on given inputs.

    inputs: tensors that are there before and after; outputs that share their memory take none of their own. error: how
    far outputs are from float64, see `relative_error`, or the measure that the operation's docstring names.
    """

    contenders: Sequence[Contender]
    skipped: Sequence[Skip]
    inputs: Sequence[Tensor]
    work: Work
    error: Callable[[Outputs], float]


@dataclass(frozen=True)
class Plan:
    """A case whose inputs do not exist yet, so that many can be listed and one at a time takes memory.

    direction: ``forward`` or ``forward_backward``. shape: in words, such as ``T=512 H=1024``. build: makes the case;
    its argument says whether peers take part.
    """

    op: str
    direction: str
    shape: str
    dtype: torch.dtype
    device: torch.device
    build: Callable[[bool], Case] = field(repr=False)

    @property
    def title(self) -> str:
        return f"{self.op} {self.direction} {self.shape} {dtype_name(self.dtype)}"


def dtype_name(dtype: torch.dtype) -> str:
    """``float32``, ``bfloat16`` ..."""
    return str(dtype).removeprefix("torch.")


def own_contenders(
    run: Callable[[str], Outputs], device: torch.device, shapes: Shapes
) -> tuple[list[Contender], list[Skip]]:
    """The backends of an operation on a device. run: computes it with the backend of this name.

    Which of them the operation has shows when they are run.
    """
    contenders, skipped = [], []
    for name in BACKENDS:
        if name == "reference" and shapes == "real":
            skipped.append(Skip(name, "is an oracle, too slow or too large for real shapes"))
        elif name == "triton" and device.type == "cpu" and interpreting():
            skipped.append(Skip(name, "runs in Triton's interpreter, which is for correctness"))
        else:
            contenders.append(Contender(name, lambda name=name: run(name), "ours"))  # type: ignore[misc]
    return contenders, skipped


def compiled(function: Callable) -> Callable:
    """``torch.compile`` of a function for the one shape it will see. Without a compiler: NotApplicable when it runs."""
    torch._dynamo.reset()  # earlier cases must not make this one compile for dynamic shapes
    return torch.compile(function, dynamic=False)


def relative_error(outputs: Outputs, expected: Outputs) -> float:
    """The largest difference, relative to the largest magnitude of each output; the worst of all outputs."""
    worst = 0.0
    for output, exact in zip(outputs, expected, strict=False):
        if output is not None and exact is not None and exact.numel():
            difference = (output.detach().double() - exact).abs().max()
            worst = max(worst, float(difference / exact.abs().max().clamp(min=1e-300)))
    return worst
