"""Log-prob, entropy and policy loss from hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from areal_mega import ops
from areal_mega.bench.case import (
    Case,
    Contender,
    Outputs,
    Plan,
    Shapes,
    Skip,
    Work,
    compiled,
    own_contenders,
    relative_error,
)
from areal_mega.bench.cases import logits, losses
from areal_mega.bench.peers import OF_HIDDEN

# With the gradient that few have: through the entropy.
_OPTIONS = replace(losses.OPTIONS, entropy_coef=0.001)

# The gradients are checked at some tokens and some rows of the weight, in float64 over a part of the vocabulary at a
# time.
_CHECKED_TOKENS, _CHECKED_ROWS, _PART = 16, 64, 16384


def linear_logprob(shapes: Shapes, device: torch.device) -> list[Plan]:
    """Forward, and forward with backward; outputs are log-prob, entropy and the gradients to hidden and weight."""
    return [
        _plan("linear_logprob", direction, partial(_logprob, direction == "forward_backward"), dtype, shapes, device)
        for direction in ("forward", "forward_backward")
        for dtype in _dtypes(shapes, device)
    ]


def linear_policy_loss(shapes: Shapes, device: torch.device) -> list[Plan]:
    """Outputs are log-prob, entropy, the gradients to hidden and weight, the loss and each statistic."""
    return [
        _plan("linear_policy_loss", "forward_backward", _policy_loss, dtype, shapes, device)
        for dtype in _dtypes(shapes, device)
    ]


class _Head(NamedTuple):
    """hidden ``[T, H]``, weight ``[V, H]``, targets ``[T]``."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor

    def flop(self, products: int) -> int:
        """Of so many products of the size of the logits."""
        return 2 * products * self.hidden.numel() * len(self.weight)


def _dtypes(shapes: Shapes, device: torch.device) -> list[torch.dtype]:
    if shapes == "small":
        return [torch.float32]
    return [torch.bfloat16] if device.type == "cuda" else [torch.float32, torch.bfloat16]


def _plan(
    op: str, direction: str, build: Callable[..., Case], dtype: torch.dtype, shapes: Shapes, device: torch.device
) -> Plan:
    tokens, size, width = (512, 1024, logits.VOCABULARY) if device.type == "cpu" else (8192, 4096, logits.VOCABULARY)
    if shapes == "small":
        tokens, size, width = 64, 64, 4096

    def head() -> _Head:
        torch.manual_seed(0)
        hidden = torch.randn(tokens, size, device=device).to(dtype)
        weight = (torch.randn(width, size, device=device) * 2 / size**0.5).to(dtype)
        return _Head(hidden, weight, torch.randint(width, (tokens,), device=device))

    shape = f"T={tokens} H={size} V={width}"
    return Plan(op, direction, shape, dtype, device, lambda peers: build(head(), shapes, peers))


def _logprob(backward: bool, head: _Head, shapes: Shapes, peers: bool) -> Case:
    hidden, weight, targets = head
    upstream = torch.randn(2, len(hidden), device=hidden.device).unbind()

    def run(function: Callable[..., Outputs]) -> Outputs:
        if backward:
            return logits.differentiated(function, (hidden, weight), (targets,), upstream)
        return logits.without_gradients(function, *head)

    def ours(backend: str) -> Outputs:
        return run(partial(ops.linear_logprob, backend=backend))

    contenders, skipped = own_contenders(ours, hidden.device, shapes)
    contenders.append(Contender("torch eager", partial(run, _in_torch)))
    if peers:
        contenders.append(Contender("torch.compile", partial(run, compiled(_in_torch))))
        contenders += [Contender(name, partial(run, peer.run), peer.role) for name, peer in OF_HIDDEN.items()]
    exact = _Exact(head)
    expected: Outputs = (exact.logprob, exact.entropy)
    if backward:
        expected = *expected, *exact.gradients(upstream)
    case_error = partial(_error, expected=expected)
    inputs = *head, *upstream
    return Case(contenders, skipped, inputs, _work(head, backward), case_error)


def _policy_loss(head: _Head, shapes: Shapes, peers: bool) -> Case:
    hidden, weight, targets = head
    exact = _Exact(head)
    arguments = losses.policy_arguments(exact.logprob.float())
    names = list(arguments)

    def run(function: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]) -> Outputs:
        leaves = [x.detach().requires_grad_() for x in (hidden, weight)]
        loss, statistics, logprob, entropy = function(*leaves, targets, *arguments.values())
        gradients = torch.autograd.grad(loss, leaves)
        return logprob.detach(), entropy.detach(), *gradients, loss.detach(), *statistics.unbind()

    def ours(backend: str) -> Outputs:
        def function(hidden: Tensor, weight: Tensor, targets: Tensor, *constants: Tensor) -> Any:
            named: dict[str, Any] = dict(zip(names, constants, strict=True))
            return ops.linear_policy_loss(hidden, weight, targets, options=_OPTIONS, backend=backend, **named)

        return run(function)

    def in_two(hidden: Tensor, weight: Tensor, targets: Tensor, *constants: Tensor) -> Any:
        logprob, entropy = ops.linear_logprob(hidden, weight, targets)
        named: dict[str, Any] = dict(zip(names, constants, strict=True))
        loss, statistics = ops.policy_loss(logprob, entropy, options=_OPTIONS, **named)
        return loss, statistics, logprob, entropy

    def in_torch(hidden: Tensor, weight: Tensor, targets: Tensor, *constants: Tensor) -> Any:
        logprob, entropy = _in_torch(hidden, weight, targets)
        loss, statistics = losses.policy_loss_in_torch(logprob, entropy, *constants, options=_OPTIONS)
        return loss, statistics, logprob, entropy

    contenders, skipped = own_contenders(ours, hidden.device, shapes)
    contenders.append(Contender("linear_logprob, then policy_loss", partial(run, in_two), "partial"))
    contenders.append(Contender("torch eager", partial(run, in_torch)))
    if peers:
        contenders.append(Contender("torch.compile", partial(run, compiled(in_torch))))
        for name in OF_HIDDEN:
            skipped.append(Skip(name, "has no policy loss"))
    expected = _exact_policy_loss(exact, arguments)
    inputs = *head, *arguments.values()
    return Case(contenders, skipped, inputs, _work(head, True), partial(_error, expected=expected))


def _in_torch(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return logits.in_torch(hidden @ weight.t(), targets)


def _work(head: _Head, backward: bool) -> Work:
    size = head.hidden.nbytes + head.weight.nbytes
    return Work(read=size, written=size, flop=head.flop(3)) if backward else Work(read=size, flop=head.flop(1))


def _error(outputs: Outputs, expected: Outputs) -> float:
    logprob, entropy, *rest = outputs
    if rest:
        hidden, weight, *others = rest
        assert hidden is not None and weight is not None
        rest = [hidden[_checked(len(hidden), _CHECKED_TOKENS)], weight[_checked(len(weight), _CHECKED_ROWS)], *others]
    return relative_error([logprob, entropy, *rest], expected)


def _checked(length: int, count: int) -> slice:
    return slice(None, None, max(1, length // count))


class _Exact:
    """What a head gives, in float64.

    logprob, entropy: ``[T]``.
    """

    def __init__(self, head: _Head) -> None:
        self._head, self._hidden = head, head.hidden.double()
        lse, mean = (torch.stack(x) for x in zip(*map(self._of_part, self._parts()), strict=True))
        self._lse = lse.logsumexp(0)
        target = (self._hidden * head.weight[head.targets].double()).sum(1)
        self.logprob = target - self._lse
        self.entropy = self._lse - ((lse - self._lse).exp() * mean).sum(0)

    def gradients(self, upstream: Outputs) -> Outputs:
        """To the hidden states and the weight, where they are checked. upstream: to log-prob and entropy, ``[T]``."""
        head = self._head
        tokens = torch.arange(len(head.hidden), device=head.hidden.device)
        rows = torch.arange(len(head.weight), device=head.hidden.device)
        some_tokens, some_rows = (
            tokens[_checked(len(tokens), _CHECKED_TOKENS)],
            rows[_checked(len(rows), _CHECKED_ROWS)],
        )
        of_hidden = torch.zeros_like(self._hidden[some_tokens])
        for part, weight in zip(rows.split(_PART), self._parts(), strict=True):
            of_hidden += self._to_logits(some_tokens, part, weight, upstream) @ weight
        of_weight = self._to_logits(tokens, some_rows, head.weight[some_rows].double(), upstream).t() @ self._hidden
        return of_hidden, of_weight

    def _parts(self) -> Iterator[Tensor]:
        return (weight.double() for weight in self._head.weight.split(_PART))

    def _of_part(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Log-sum-exp and mean of the logits of some rows of the weight."""
        z = self._hidden @ weight.t()
        return z.logsumexp(1), (z.softmax(1) * z).sum(1)

    def _to_logits(self, tokens: Tensor, rows: Tensor, weight: Tensor, upstream: Outputs) -> Tensor:
        """The gradient to the logits of these tokens and rows, which have this weight."""
        of_logprob, of_entropy = (grad[tokens, None].double() for grad in upstream if grad is not None)
        log_p = self._hidden[tokens] @ weight.t() - self._lse[tokens, None]
        chosen = self._head.targets[tokens, None] == rows
        return of_logprob * (chosen.double() - log_p.exp()) - of_entropy * log_p.exp() * (
            log_p + self.entropy[tokens, None]
        )


def _exact_policy_loss(exact: _Exact, arguments: dict[str, Tensor]) -> Outputs:
    wide = {name: x if x.dtype == torch.bool else x.double() for name, x in arguments.items()}
    loss, statistics, *upstream = ops.policy_loss_and_gradients(
        exact.logprob, exact.entropy, options=_OPTIONS, backend="reference", **wide
    )
    return exact.logprob, exact.entropy, *exact.gradients(upstream), loss, *statistics.unbind()
