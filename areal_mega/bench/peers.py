"""The packages of others that compute one of our operations. None is needed; each is loaded when it is run.

Every function takes the tensors that the case has and returns outputs in its order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from areal_mega.bench.case import NotApplicable, Role

# Rows of logits at a time for torch's chunked loss: the default is a few rows, which takes minutes at a vocabulary's
# size.
_CHUNK = 128


class Peer(NamedTuple):
    """A package's way to log-prob and entropy, differentiable; the entropy is None where it has none."""

    run: Callable[..., tuple[Tensor, Tensor | None]]
    role: Role


def _load(package: str, module: str, device: torch.device, needs_gpu: bool = True) -> Any:
    """A module of a package that may not be there."""
    if find_spec(package) is None:
        raise NotApplicable("is not installed")
    if needs_gpu and device.type != "cuda":
        raise NotApplicable("has GPU kernels only")
    try:
        return import_module(module)
    except ImportError as error:
        raise NotApplicable(f"does not load: {error}") from error


def _trl(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
    utils = _load("trl", "trl.trainer.utils", logits.device, needs_gpu=False)
    if hasattr(utils, "selective_log_softmax_and_entropy"):
        return utils.selective_log_softmax_and_entropy(logits, targets)
    return utils.selective_log_softmax(logits, targets), utils.entropy_from_logits(logits)


def _flash_attention(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
    module = _load("flash_attn", "flash_attn.ops.triton.cross_entropy", logits.device)
    return -module.cross_entropy_loss(logits, targets)[0], None


def _liger_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
    module = _load("liger_kernel", "liger_kernel.ops.vocab_parallel_cross_entropy", logits.device)
    loss = module.LigerVocabParallelCEFunction.apply(
        logits[:, None], targets[:, None], None, -100, 0.0, "pytorch", "global"
    )
    return -loss.flatten(), None


def _liger_linear(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
    module = _load("liger_kernel", "liger_kernel.ops.fused_linear_scaled_cross_entropy", hidden.device)
    loss, entropy = module.LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, weight, targets, 1.0, -100, 1, True)
    return -loss, entropy


def _cut_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
    module = _load("cut_cross_entropy", "cut_cross_entropy", hidden.device)
    # Without its filter, which leaves gradients out that it holds to be small.
    return -module.linear_cross_entropy(hidden, weight, targets, reduction="none", filter_eps=None), None


def _torch_linear(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise NotApplicable(f"is not in torch {torch.__version__}")
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=_CHUNK, chunking_method=None)
    return -F.linear_cross_entropy(hidden, weight, targets, reduction="none", options=options), None


# By name. Those without entropy are partial.
OF_LOGITS: Mapping[str, Peer] = {
    "TRL": Peer(_trl, "peer"),
    "flash-attn (no entropy)": Peer(_flash_attention, "partial"),
    "Liger (no entropy)": Peer(_liger_logits, "partial"),
}
OF_HIDDEN: Mapping[str, Peer] = {
    "Liger": Peer(_liger_linear, "peer"),
    "cut-cross-entropy (no entropy)": Peer(_cut_cross_entropy, "partial"),
    "F.linear_cross_entropy (no entropy)": Peer(_torch_linear, "partial"),
}
