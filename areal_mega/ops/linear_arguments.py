"""The arguments that the fused linear operations share: their checks, and their way through the operators."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from areal_mega.ops.checks import check_like
from areal_mega.ops.collectives import name_of
from areal_mega.ops.linear_head import LinearHead
from areal_mega.ops.logit_rows import number_dtype
from areal_mega.ops.vocab_parallel import VocabShard

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Settings(NamedTuple):
    """What an operator takes beside tensors, in the order of `SETTINGS_SCHEMA`."""

    temperature: float
    vocab_start: int
    vocab_size: int
    group: str
    sequence_parallel: bool
    workspace_bytes: int
    backend: str


SETTINGS_SCHEMA = (
    "float temperature, SymInt vocab_start, SymInt vocab_size, str group, bool sequence_parallel, "
    "int workspace_bytes, str backend"
)


def settings_of(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    main_grad: Tensor | None,
    *,
    temperature: float,
    vocab_size: int | None,
    vocab_start: int | None,
    group: dist.ProcessGroup | None,
    sequence_parallel: bool,
    workspace_bytes: int,
    backend: str,
) -> Settings:
    """Raises ValueError for arguments that do not fit each other."""
    if hidden.dim() != 2 or hidden.dtype not in DTYPES:
        raise ValueError(
            f"hidden is {hidden.dtype} of shape {list(hidden.shape)}: "
            f"expected float32, bfloat16, float16 or float64 of shape [T, H]"
        )
    rows = weight.shape[0] if weight.dim() else 0
    check_like(hidden, "weight", weight, hidden.dtype, rows, hidden.shape[1])
    ranks = group.size() if group is not None and sequence_parallel else 1
    if targets.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"targets is {targets.dtype}: expected int32 or int64")
    check_like(hidden, "targets", targets, targets.dtype, ranks * hidden.shape[0])
    if main_grad is not None:
        check_like(hidden, "main_grad", main_grad, number_dtype(weight.dtype), *weight.shape)
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}: expected a number above 0")
    if workspace_bytes <= 0:
        raise ValueError(f"workspace_bytes is {workspace_bytes}: expected a number above 0, or None for the default")
    shard = VocabShard.of(rows, group, vocab_start, vocab_size)
    return Settings(temperature, shard.start, shard.size, name_of(group), sequence_parallel, workspace_bytes, backend)


def check_targets(targets: Tensor, vocab_size: int) -> None:
    """Raises ValueError for a target outside the vocabulary. Looks at the data on the CPU only: a GPU would have to
    wait; there such a target's log-prob is NaN."""
    if targets.device.type == "cpu" and targets.numel() and targets.max() >= vocab_size:
        raise ValueError(f"targets has the id {int(targets.max())}: expected ids below {vocab_size}, the vocab_size")


def head_of(
    hidden: Tensor, weight: Tensor, targets: Tensor, settings: Settings, *, rows: int, columns: int
) -> LinearHead:
    """hidden: ``[T, H]`` of all ranks. rows, columns: of the logits that one product computes."""
    shard = VocabShard.of(len(weight), None, settings.vocab_start, settings.vocab_size)
    return LinearHead(
        hidden=hidden,
        weight=weight[: shard.columns],
        targets=targets.long() - shard.start,
        temperature=settings.temperature,
        rows=max(1, rows),
        columns=max(1, columns),
        backend=settings.backend,
    )
