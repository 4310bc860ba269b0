"""Checks of arguments that several operations share. They look at shapes, dtypes and devices, not at the data, unless
they say so."""

from __future__ import annotations

import torch
from torch import Tensor


def check_like(anchor: Tensor, name: str, x: Tensor, dtype: torch.dtype, *shape: int) -> None:
    """Raises ValueError unless ``x`` has this dtype and shape and is on the device of ``anchor``."""
    if x.shape != shape or x.dtype != dtype or x.device != anchor.device:
        raise ValueError(
            f"{name} is {x.dtype} of shape {list(x.shape)} on {x.device}: "
            f"expected {dtype} of shape {list(shape)} on {anchor.device}, like the other arguments"
        )


def check_cu_seqlens(cu_seqlens: Tensor) -> None:
    """Raises ValueError unless ``cu_seqlens`` is ``[B + 1]`` int32 or int64."""
    if cu_seqlens.dim() != 1 or not cu_seqlens.numel() or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"cu_seqlens is {cu_seqlens.dtype} of shape {list(cu_seqlens.shape)}: "
            f"expected int32 or int64 of shape [B + 1]"
        )


def check_bounds(cu_seqlens: Tensor, tokens: int) -> None:
    """Raises ValueError unless ``cu_seqlens`` goes from 0 to ``tokens`` and never decreases. Looks at the data."""
    ascending = bool((cu_seqlens[1:] >= cu_seqlens[:-1]).all())
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != tokens or not ascending:
        raise ValueError(f"cu_seqlens must start at 0, never decrease and end at {tokens}, the number of tokens")
