"""Optional packages that make training on GPUs faster. What is installed is used; nothing here is required.

- TransformerEngine: its linear layers (with fp8, by ``policy.megatron.fp8``), grouped GEMMs for experts, fused
  permutation.
- TransformerEngine or Apex: Megatron's optimizer takes their fused Adam by itself.
"""

from __future__ import annotations

import functools
import importlib.util

import torch

from areal_mega.runtime import cpu


@functools.cache
def transformer_engine() -> bool:
    """Whether TransformerEngine is installed and this process computes on a GPU."""
    return not cpu.enabled() and torch.cuda.is_available() and installed("transformer_engine")


def installed(package: str) -> bool:
    """Whether a package can be imported, without doing so."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False
