"""Log-prob and entropy of given logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from areal_mega import ops
from areal_mega.bench.case import (
    Case,
    Contender,
    Outputs,
    Plan,
    Shapes,
    Work,
    compiled,
    own_contenders,
    relative_error,
)
from areal_mega.bench.peers import OF_LOGITS

VOCABULARY = 151936  # Qwen's
_DISTINCT_ROWS, _CHECKED_ROWS = 64, 16


def logprob_from_logits(shapes: Shapes, device: torch.device) -> list[Plan]:
    """Forward, and forward with backward; outputs are log-prob, entropy and the gradient to the logits."""
    dtypes, rows, width = [torch.float32, torch.bfloat16], 2048, VOCABULARY
    if shapes == "small":
        dtypes, rows, width = [torch.float32], 64, 4096
    elif device.type == "cuda":
        dtypes, rows = [torch.bfloat16], 8192
    # On the CPU half the rows with backward: peers need several times the memory of the logits.
    sizes = {"forward": rows, "forward_backward": rows if device.type == "cuda" else rows // 2}
    return [
        Plan(
            "logprob_from_logits",
            *(direction, f"T={rows} V={width}", dtype, device),
            partial(_build, direction == "forward_backward", rows, width, dtype, device, shapes),
        )
        for direction, rows in sizes.items()
        for dtype in dtypes
    ]


def in_torch(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """As it is written with torch alone, in float32."""
    log_p = logits.float().log_softmax(-1)
    return log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)


def differentiated(
    function: Callable[..., Outputs],
    inputs: tuple[Tensor, ...],
    constants: tuple[Tensor, ...],
    upstream: Sequence[Tensor],
) -> Outputs:
    """The outputs of a function of inputs and constants, and the gradients to the inputs for those that reach the
    outputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = function(*leaves, *constants)
    reached = [(y, grad.to(y.dtype)) for y, grad in zip(outputs, upstream, strict=True) if y is not None]
    gradients = torch.autograd.grad([y for y, _ in reached], leaves, [grad for _, grad in reached])
    return *(None if y is None else y.detach() for y in outputs), *gradients


def without_gradients(function: Callable[..., Outputs], *arguments: Tensor) -> Outputs:
    """The outputs of a function."""
    with torch.no_grad():
        return function(*arguments)


def _build(
    backward: bool, rows: int, width: int, dtype: torch.dtype, device: torch.device, shapes: Shapes, peers: bool
) -> Case:
    torch.manual_seed(0)
    logits, targets = _logits(rows, width, dtype, device), torch.randint(width, (rows,), device=device)
    upstream = torch.randn(2, rows, device=device).unbind()
    exact = _exact(logits, targets, upstream, backward)

    def run(function: Callable[..., Outputs]) -> Outputs:
        if backward:
            return differentiated(function, (logits,), (targets,), upstream)
        return without_gradients(function, logits, targets)

    def ours(backend: str, **options: Any) -> Outputs:
        return run(partial(ops.logprob_from_logits, backend=backend, **options))

    contenders, skipped = own_contenders(ours, device, shapes)
    inputs = [logits, targets, *upstream]
    if backward:
        overwritten = logits.clone()
        inputs.append(overwritten)
        contenders += [
            Contender(
                f"{own.name}, in place",
                partial(_in_place, own.name, overwritten, targets, upstream),
                "ours",
                reset=partial(overwritten.copy_, logits),
            )
            for own in contenders
        ]
    contenders.append(Contender("torch eager", partial(run, in_torch)))
    if peers:
        contenders.append(Contender("torch.compile", partial(run, compiled(in_torch))))
        contenders += [Contender(name, partial(run, peer.run), peer.role) for name, peer in OF_LOGITS.items()]
    size = logits.nbytes
    work = Work(read=2 * size, written=size) if backward else Work(read=size)

    def error(outputs: Outputs) -> float:
        return relative_error([None if y is None else y[_checked(rows)] for y in outputs], exact)

    return Case(contenders, skipped, inputs, work, error)


def _logits(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random rows, of which many are alike: they need not all be drawn."""
    distinct = 3 * torch.randn(_DISTINCT_ROWS, width, device=device)
    return distinct.to(dtype).repeat(-(-rows // _DISTINCT_ROWS), 1)[:rows]


class _FromModel(torch.autograd.Function):
    """Makes logits what a model hands over: no leaf, so that they may be overwritten. What reaches them stays there."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, logits: Tensor) -> Tensor:
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.new_zeros(()), None


def _in_place(backend: str, logits: Tensor, targets: Tensor, upstream: tuple[Tensor, ...]) -> Outputs:
    anchor = logits.new_zeros((), requires_grad=True)
    produced = _FromModel.apply(anchor, logits)
    logprob, entropy = ops.logprob_from_logits(produced, targets, inplace_backward=True, backend=backend)
    torch.autograd.backward([logprob, entropy], list(upstream))
    return logprob.detach(), entropy.detach(), logits


def _checked(rows: int) -> slice:
    return slice(None, None, max(1, rows // _CHECKED_ROWS))


def _exact(logits: Tensor, targets: Tensor, upstream: tuple[Tensor, ...], backward: bool) -> Outputs:
    """Of the rows that are checked, in float64."""
    chosen = _checked(len(logits))

    def by_definition(z: Tensor) -> tuple[Tensor, Tensor]:
        log_p = z.log_softmax(-1)
        return log_p.gather(1, targets[chosen, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)

    if not backward:
        return by_definition(logits[chosen].double())
    return differentiated(by_definition, (logits[chosen].double(),), (), [grad[chosen] for grad in upstream])
