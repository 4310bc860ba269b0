"""Policy loss from hidden states: the output layer, its log-probs, the loss and all gradients in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from areal_mega.ops.collectives import group_of
from areal_mega.ops.linear_arguments import SETTINGS_SCHEMA, Settings, check_targets, head_of, settings_of
from areal_mega.ops.linear_head import HiddenGradient, LinearHead, Upstream, WeightGradient, gather_tokens
from areal_mega.ops.linear_logprob import CPU_COLUMNS
from areal_mega.ops.logit_rows import number_dtype
from areal_mega.ops.policy_loss import POLICY_STATISTICS, PolicyLossOptions, policy_loss_and_gradients
from areal_mega.ops.vocab_parallel import combine, merge

_MIB = 2**20
_WORKSPACE = {"cpu": 48 * _MIB}
_DEFAULT_WORKSPACE = 1024 * _MIB
_BY_DEFAULT = 0


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    advantages: Tensor,
    proximal_logprobs: Tensor,
    loss_mask: Tensor,
    loss_weight: Tensor,
    options: PolicyLossOptions,
    *,
    behavior_logprobs: Tensor | None = None,
    reference_logprobs: Tensor | None = None,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    vocab_start: int | None = None,
    group: dist.ProcessGroup | None = None,
    sequence_parallel: bool = False,
    main_grad: Tensor | None = None,
    loss_scale: float = 1.0,
    workspace_bytes: int | None = None,
    backend: str = "",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`linear_logprob` and `policy_loss` in one: three products of the size of the logits instead of four.

    Since the loss's weights are known beforehand, the gradient of a token's logits is known as soon as its logits
    are: for a chunk of tokens, logits, log-probs, loss and both gradients follow each other, and no logits are
    computed twice. Forward stores the gradients; backward multiplies them by what reaches the loss. It may run once.

    hidden, weight, targets, temperature, vocab_size, vocab_start, group, sequence_parallel: see
    `areal_mega.ops.linear_logprob`; an ignored target is a masked token. backend: of the passes over the logits and of
    the loss. advantages, proximal_logprobs, loss_mask, loss_weight, options, behavior_logprobs, reference_logprobs:
    ``[T]`` of all T tokens, see `areal_mega.ops.policy_loss`; the log-probs and the rest in float32 (float64 for
    float64 weights).

    loss_scale: the gradient that will reach the loss, if it is not 1: a scale against underflow in float16, for one.
    It is in the gradients before they are rounded. main_grad: `weight`'s gradient is added to it already in forward,
    loss_scale included, so the gradient that reaches the loss must then be loss_scale: backward raises RuntimeError
    for another (on a GPU asynchronously). Without gradients (``torch.no_grad``) it is not touched.

    workspace_bytes: of logits that exist at a time. Each such chunk of tokens costs reading the weight twice and
    adding to its gradient. None: all logits where they are no larger than the weight's gradient in float32, otherwise
    48 MiB on the CPU, 1 GiB on a GPU. A 16-bit weight's gradient that comes in several chunks needs a sum in float32,
    twice the weight; main_grad is one. Where all logits are no larger than such a sum, they are held in any case.

    Returns ``loss []``, differentiable in hidden and weight, and without gradients ``statistics`` float64 (see
    `policy_loss`), ``logprobs [T]`` and ``entropy [T]``. Raises ValueError as `linear_logprob` and `policy_loss` do,
    and for options with a ratio or weight over sequences, which need log-probs of whole sequences first.
    """
    if options.over_sequences:
        raise ValueError(
            f"options has ratio {options.ratio!r} and behavior {options.behavior!r}: expected those of single tokens. "
            f"For sequences use linear_logprob, then policy_loss"
        )
    if not loss_scale > 0:
        raise ValueError(f"loss_scale is {loss_scale}: expected a number above 0")
    settings = settings_of(
        hidden,
        weight,
        targets,
        main_grad,
        temperature=temperature,
        vocab_size=vocab_size,
        vocab_start=vocab_start,
        group=group,
        sequence_parallel=sequence_parallel,
        workspace_bytes=1 if workspace_bytes is None else workspace_bytes,
        backend=backend,
    )
    if workspace_bytes is None:
        settings = settings._replace(workspace_bytes=_BY_DEFAULT)  # decided where sizes are no symbols of a compiler
    enabled = torch.is_grad_enabled()
    loss, statistics, logprobs, entropy, *gradients = torch.ops.areal_mega.linear_policy_loss(
        *(hidden.detach(), weight.detach(), targets, main_grad),
        *(advantages, proximal_logprobs, loss_mask, loss_weight, behavior_logprobs, reference_logprobs),
        *(options.numbers(), loss_scale, enabled and hidden.requires_grad, enabled and weight.requires_grad),
        *settings,
    )
    added = main_grad is not None
    loss = torch.ops.areal_mega.linear_policy_loss_stored(loss, hidden, weight, *gradients, loss_scale, added)
    return loss, statistics, logprobs, entropy


def _head(
    hidden: Tensor, weight: Tensor, targets: Tensor, settings: Settings, ranks: int, has_gradient: bool
) -> LinearHead:
    """The ranks must agree on the chunks, since they combine after each: only what they share decides.

    has_gradient: the weight gets one that is not main_grad.
    """
    on_cpu = hidden.device.type == "cpu"
    columns = -(-settings.vocab_size // ranks)
    all_logits, float32_sum = len(hidden) * columns * hidden.element_size(), columns * hidden.shape[1] * 4
    by_default, rounds_sum = settings.workspace_bytes == _BY_DEFAULT, weight.element_size() == 2
    holds_all = has_gradient and (by_default or rounds_sum) and all_logits <= float32_sum
    workspace = _WORKSPACE.get(hidden.device.type, _DEFAULT_WORKSPACE) if by_default else settings.workspace_bytes
    rows = len(hidden) if holds_all else workspace // max(1, columns * hidden.element_size())
    return head_of(hidden, weight, targets, settings, rows=rows, columns=CPU_COLUMNS if on_cpu else len(weight))


class _Loss:
    """Loss and statistics, summed over chunks of tokens in float64."""

    def __init__(self, targets: Tensor, tensors: Sequence[Tensor], options: PolicyLossOptions, backend: str) -> None:
        """tensors: ``[T]`` each: advantages, proximal log-probs, mask, weight; behavior and reference log-probs, which
        may be None."""
        advantages, proximal, mask, weight, *log_probs = tensors
        self._needed, self._optional = (advantages, proximal, mask & (targets >= 0), weight), log_probs
        self._ignored, self._options, self._backend = targets < 0, options, backend
        self._sums = torch.zeros(1 + len(POLICY_STATISTICS), dtype=torch.float64, device=targets.device)
        self._outputs: list[tuple[Tensor, Tensor]] = []

    def add(self, chunk: slice, logprob: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor | None]:
        """The gradients to the log-probs and, if the loss has it, the entropy of these tokens."""
        ignored = self._ignored[chunk]
        logprob, entropy = logprob.masked_fill(ignored, 0.0), entropy.masked_fill(ignored, 0.0)
        advantages, proximal, mask, weight = (x[chunk] for x in self._needed)
        behavior, reference = (None if x is None else x[chunk] for x in self._optional)
        loss, statistics, grad_logprob, grad_entropy = policy_loss_and_gradients(
            *(logprob, entropy, advantages, proximal, mask, weight, self._options),
            behavior_logprobs=behavior,
            reference_logprobs=reference,
            backend=self._backend,
        )
        self._sums += torch.cat([loss[None].double(), statistics])
        self._outputs.append((logprob, entropy))
        return grad_logprob, grad_entropy

    def results(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Loss, statistics, and log-prob and entropy of all tokens."""
        logprobs, entropy = (torch.cat(parts) for parts in zip(*self._outputs, strict=True))
        return self._sums[0].to(logprobs.dtype), self._sums[1:].clone(), logprobs, entropy


def _run(hidden: Tensor, weight: Tensor, targets: Tensor, main_grad: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *tensors, numbers, loss_scale, needs_hidden, needs_weight = rest[: -len(Settings._fields)]
    settings = Settings(*rest[-len(Settings._fields) :])
    check_targets(targets, settings.vocab_size)
    group = group_of(settings.group)
    own = needs_weight and main_grad is None
    hidden = gather_tokens(hidden, group, settings.sequence_parallel)
    head = _head(hidden, weight, targets, settings, 1 if group is None else group.size(), own)
    grad_weight = torch.zeros_like(weight) if own else weight.new_empty(0)
    total = grad_weight if main_grad is None else main_grad
    of_hidden = HiddenGradient(head) if needs_hidden else None
    of_weight = [WeightGradient(total[block], main_grad is not None, len(head.chunks())) for block in head.blocks()]
    loss = _Loss(targets, tensors, PolicyLossOptions.from_numbers(numbers), settings.backend)
    for chunk in head.chunks():
        logits = [head.logits(chunk, block) for block in head.blocks()]
        logprob, entropy, lse = combine(_statistics(head, chunk, logits), group)
        logprob = logprob.masked_fill(targets[chunk] >= settings.vocab_size, torch.nan)
        grad_logprob, grad_entropy = loss.add(chunk, logprob, entropy)
        if not needs_hidden and not needs_weight:
            continue
        upstream = Upstream(
            lse, entropy, *(None if g is None else g * loss_scale for g in (grad_logprob, grad_entropy))
        )
        for z, block, part in zip(logits, head.blocks(), of_weight, strict=True):
            head.to_gradient_(z, chunk, block, upstream)
            if of_hidden:
                of_hidden.add(z, chunk, block)
            if needs_weight:
                part.add(z, head.hidden[chunk])
            del z
        logits.clear()  # before the next ones are there
    for part in of_weight:
        part.finish()
    grad_hidden = of_hidden.finish(group, settings.sequence_parallel) if of_hidden else hidden.new_empty(0)
    return *loss.results(), grad_hidden, grad_weight


def _statistics(head: LinearHead, chunk: slice, logits: list[Tensor]) -> Tensor:
    """``[4, t]`` of all columns of this rank, which may be none."""
    parts = [head.statistics(z, chunk, block) for z, block in zip(logits, head.blocks(), strict=True)]
    return merge(torch.stack([head.no_statistics()[:, chunk], *parts]))


def _run_fake(
    hidden: Tensor, weight: Tensor, targets: Tensor, main_grad: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    needs_hidden, needs_weight = rest[8:10]
    logprobs = hidden.new_empty(targets.shape, dtype=number_dtype(hidden.dtype))
    statistics = hidden.new_empty(len(POLICY_STATISTICS), dtype=torch.float64)
    grad_hidden = torch.empty_like(hidden) if needs_hidden else hidden.new_empty(0)
    grad_weight = torch.empty_like(weight) if needs_weight and main_grad is None else weight.new_empty(0)
    return logprobs.new_empty(()), statistics, logprobs, torch.empty_like(logprobs), grad_hidden, grad_weight


def _upstream_scale(upstream: Tensor, loss_scale: float, added: bool) -> Tensor:
    """What the stored gradients are multiplied by. added: those of the weight are in main_grad, where nothing can."""
    if added and upstream.is_cuda:
        torch._assert_async(upstream == loss_scale, _WRONG_SCALE)
    elif added and upstream != loss_scale:
        raise RuntimeError(f"{_WRONG_SCALE}: the gradient is {float(upstream)}, loss_scale is {loss_scale}")
    return upstream / loss_scale


_WRONG_SCALE = "linear_policy_loss has added to main_grad for another gradient of the loss than the one that came"


def _keep_gradients(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, _, _, *gradients, ctx.loss_scale, ctx.added = inputs
    ctx.save_for_backward(*gradients)
    ctx.spent = False


def _scale_gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.spent:
        raise RuntimeError(
            "linear_policy_loss gives its stored gradients away once: call it again for a second backward"
        )
    ctx.spent = True
    _, needs_hidden, needs_weight, *rest = ctx.needs_input_grad
    scale = torch.ops.areal_mega.linear_policy_loss_scale(upstream, ctx.loss_scale, ctx.added)
    needed = needs_hidden, needs_weight and not ctx.added
    gradients = (g.mul_(scale) if needs else None for g, needs in zip(ctx.saved_tensors, needed, strict=True))
    return None, *gradients, *(None for _ in rest)


# The pass writes to main_grad, and what writes to its arguments cannot have a backward of its own; so another operator,
# which only passes the loss on, ties the stored gradients to it.
_PASS, _STORED, _SCALE = (f"areal_mega::linear_policy_loss{part}" for part in ("", "_stored", "_scale"))
torch.library.define(
    _PASS,
    "(Tensor hidden, Tensor weight, Tensor targets, Tensor(a!)? main_grad, Tensor advantages, "
    "Tensor proximal_logprobs, Tensor loss_mask, Tensor loss_weight, Tensor? behavior_logprobs, "
    "Tensor? reference_logprobs, float[] options, float loss_scale, bool needs_hidden, bool needs_weight, "
    f"{SETTINGS_SCHEMA}) -> (Tensor loss, Tensor statistics, Tensor logprobs, Tensor entropy, Tensor grad_hidden, "
    "Tensor grad_weight)",
)
torch.library.define(
    _STORED,
    "(Tensor loss, Tensor hidden, Tensor weight, Tensor grad_hidden, Tensor grad_weight, float loss_scale, bool added) "
    "-> Tensor",
)
torch.library.define(_SCALE, "(Tensor upstream, float loss_scale, bool added) -> Tensor")
torch.library.impl(_PASS, ("cpu", "cuda"), _run)
torch.library.impl(_STORED, ("cpu", "cuda"), lambda loss, *_: loss.clone())
torch.library.impl(_SCALE, ("cpu", "cuda"), _upstream_scale)
torch.library.register_fake(_PASS, _run_fake)
torch.library.register_fake(_STORED, lambda loss, *_: torch.empty_like(loss))
torch.library.register_fake(_SCALE, lambda upstream, *_: torch.empty_like(upstream))
torch.library.register_autograd(_STORED, _scale_gradients, setup_context=_keep_gradients)
