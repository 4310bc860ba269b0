"""Losses on packed tokens: pure functions of tensors, normalised by weights fixed beforehand.

Three policies appear, and they are three different things:

- behavior: the engine's log-probs when it sampled the token;
- proximal: the trainer's log-probs before the first update of the step, the anchor of the ratio;
- the current policy, which is being trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from areal_mega import ops
from areal_mega.data import PackedBatch


@dataclass(frozen=True)
class PolicyLoss:
    """The policy's loss; its options say which."""

    options: ops.PolicyLossOptions

    def __call__(self, batch: PackedBatch, outputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a micro-batch and its statistics; both add up over micro-batches and ranks.

        The formulas are those of `areal_mega.ops.policy_loss`.

        batch: ``loss_mask``, ``advantages``, ``proximal_logprobs``, ``loss_weight`` (see `loss_weights`), with a
        behavior weight also ``behavior_logprobs``, with KL also ``reference_logprobs``; all ``[N]``. outputs:
        ``logprobs`` and ``entropy`` ``[N]``.
        """
        o = self.options
        loss, statistics = ops.policy_loss(
            outputs["logprobs"],
            outputs["entropy"],
            batch["advantages"],
            batch["proximal_logprobs"],
            batch["loss_mask"],
            batch["loss_weight"],
            o,
            behavior_logprobs=batch["behavior_logprobs"] if o.behavior else None,
            reference_logprobs=batch["reference_logprobs"] if o.kl_coef else None,
            cu_seqlens=batch.cu_seqlens,
        )
        means = _token_means(batch, ops.POLICY_STATISTICS, statistics)
        shown = {"ratio": "ratio", "clip_fraction": "clipped", "approx_kl": "approx_kl", "entropy": "entropy"}
        if o.dual_clip is not None:
            shown |= {"dual_clip_fraction": "dual_clipped"}
        if o.kl_coef:
            shown |= {"kl": "kl"}
        if o.behavior:
            shown |= {"behavior_weight": "behavior_weight", "behavior_capped": "behavior_capped"}
        return loss, {name: means[statistic] for name, statistic in shown.items()}


@dataclass(frozen=True)
class ValueLoss:
    """The critic's loss, with clipped value changes."""

    clip: float | None

    def __call__(self, batch: PackedBatch, outputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a micro-batch and its statistics; both add up over micro-batches and ranks.

        The formula is that of `areal_mega.ops.value_loss`.

        batch: ``values`` (V_old), ``returns`` (R), ``loss_mask``, ``loss_weight``; outputs: ``values``; all ``[N]``.
        """
        loss, statistics = ops.value_loss(
            outputs["values"], batch["values"], batch["returns"], batch["loss_mask"], batch["loss_weight"], self.clip
        )
        means = _token_means(batch, ops.VALUE_STATISTICS, statistics)
        shown = {"value": "value", "return": "return", "error": "error"}
        if self.clip is not None:
            shown |= {"clip_fraction": "clipped"}
        return loss, {name: means[statistic] for name, statistic in shown.items()}


def sft_loss(batch: PackedBatch, outputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of the answer tokens, and the statistics."""
    mask, weight = batch["loss_mask"], batch["loss_weight"]
    loss = -(torch.where(mask, outputs["logprobs"], 0.0) * weight).sum()
    entropy = torch.where(mask, outputs["entropy"].detach(), 0.0).double().sum()
    return loss, _token_means(batch, ("entropy",), entropy[None])


def loss_weights(batch: PackedBatch, aggregation: str, tokens: float, sequences: float) -> Tensor:
    """``[N]`` weight of each token in the loss; over the whole mini-batch of all ranks they sum to 1.

    token-mean: 1 / tokens (DAPO, Yu et al., 2025, arXiv:2503.14476). sequence-mean: 1 / (length * sequences),
    the mean over sequences of their token means (GRPO).

    tokens, sequences: counts of generated tokens and of sequences in the global mini-batch.
    """
    mask = batch["loss_mask"].to(torch.float32)
    if aggregation == "token-mean":
        return mask / max(tokens, 1.0)
    lengths = torch.zeros(batch.num_sequences).index_add(0, batch.sequence_index, mask)
    return mask / (lengths.clamp(min=1.0)[batch.sequence_index] * max(sequences, 1.0))


def _token_means(batch: PackedBatch, names: Sequence[str], sums: Tensor) -> dict[str, Tensor]:
    """By name the part of a global token mean that this micro-batch contributes."""
    return dict(zip(names, (sums / max(batch.counts["tokens"], 1.0)).unbind(), strict=True))
