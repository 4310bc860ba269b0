"""Losses on packed tokens: pure functions of tensors, normalised by weights fixed beforehand.

Three policies appear, and they are three different things:

- behavior: the engine's log-probs when it sampled the token;
- proximal: the trainer's log-probs before the first update of the step, the anchor of the ratio, or an estimate;
- the current policy, which is being trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from areal_mega import ops
from areal_mega.algorithms.kl import kl_estimate
from areal_mega.data import PackedBatch
from areal_mega.ops.policy_loss import MAX_LOG_RATIO


@dataclass(frozen=True)
class PolicyLoss:
    """The policy's loss: the terms of `areal_mega.ops.policy_loss`, and those that the fused kernel does not have.

    options: the kernel's terms. soft_gate: temperatures of SAPO, whose objective then takes the place of theirs.
    unbiased_kl_coef: weight of `unbiased_kl`, with the estimator of the options, whose own kl_coef is 0 then.
    nll_coef: weight of the negative log-likelihood of right responses.
    """

    options: ops.PolicyLossOptions
    soft_gate: SoftGate | None = None
    unbiased_kl_coef: float = 0.0
    nll_coef: float = 0.0

    def __call__(self, batch: PackedBatch, outputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a micro-batch and its statistics; both add up over micro-batches and ranks.

        batch: ``loss_mask``, ``advantages``, ``proximal_logprobs``, ``loss_weight`` (see `loss_weights`), with a
        behavior weight or an ``interpolation`` (see `interpolated`) also ``behavior_logprobs``, with KL also
        ``reference_logprobs``, with nll_coef also ``nll_weight`` (see `nll_weights`); all ``[N]``.
        outputs: ``logprobs`` and ``entropy`` ``[N]``.
        """
        o = self.options
        batch = interpolated(batch, outputs["logprobs"])
        uses_kl = bool(o.kl_coef or self.unbiased_kl_coef)
        loss, statistics = ops.policy_loss(
            outputs["logprobs"],
            outputs["entropy"],
            torch.zeros_like(batch["advantages"]) if self.soft_gate else batch["advantages"],
            batch["proximal_logprobs"],
            batch["loss_mask"],
            batch["loss_weight"],
            o,
            behavior_logprobs=batch["behavior_logprobs"] if o.behavior else None,
            reference_logprobs=batch["reference_logprobs"] if uses_kl else None,
            cu_seqlens=batch.cu_seqlens,
        )
        means = _token_means(batch, ops.POLICY_STATISTICS, statistics)
        shown = {"ratio": "ratio", "approx_kl": "approx_kl", "entropy": "entropy"}
        if not self.soft_gate:
            shown |= {"clip_fraction": "clipped"}
        if o.dual_clip is not None:
            shown |= {"dual_clip_fraction": "dual_clipped"}
        if uses_kl:
            shown |= {"kl": "kl"}
        if o.behavior:
            shown |= {"behavior_weight": "behavior_weight", "behavior_capped": "behavior_capped"}
        more, nll = self._other_terms(batch, outputs["logprobs"])
        return loss + more, {name: means[statistic] for name, statistic in shown.items()} | nll

    def _other_terms(self, batch: PackedBatch, logprobs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The terms that are not in the kernel, and the negative log-likelihood where it is one of them."""
        mask, weight = batch["loss_mask"], batch["loss_weight"]

        def valid(name: str) -> Tensor:
            return torch.where(mask, batch[name], 0)

        total, nll = weight.new_zeros(()), {}
        logprobs = torch.where(mask, logprobs, 0)
        proximal = valid("proximal_logprobs")
        if self.soft_gate:
            gated = self.soft_gate(logprobs - proximal, valid("advantages"))
            total = total + _sum(valid("loss_weight") * behavior_weights(batch, self.options) * gated)
        if self.unbiased_kl_coef:
            kl = unbiased_kl(logprobs, proximal, valid("reference_logprobs"), self.options.kl_estimator)
            total = total + self.unbiased_kl_coef * _sum(valid("loss_weight") * kl)
        if self.nll_coef:
            mean = -_sum(valid("nll_weight") * logprobs)
            total, nll = total + self.nll_coef * mean, {"positive_nll": mean.detach()}
        return total, nll


@dataclass(frozen=True)
class SoftGate:
    """SAPO's objective ``[N]`` (Gao et al., 2025, arXiv:2511.20347): ``-(4 / tau) sigmoid(tau (ratio - 1)) A``.

    positive, negative: tau, for A > 0 and for the others. Where the ratio is 1 the slope is that of PPO.
    """

    positive: float
    negative: float

    def __call__(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """log_ratio: ``[N]`` of the current to the proximal policy; cut to +-`MAX_LOG_RATIO`, as everywhere."""
        ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        tau = torch.where(advantages > 0, self.positive, self.negative).to(ratio.dtype)
        return -4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantages


def unbiased_kl(logprobs: Tensor, proximal: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """``[N]`` KL estimates times the ratio to the policy that sampled, differentiable through both.

    Its mean over samples of the proximal policy is KL(policy || reference) itself, and so is its gradient; that of k3
    alone is neither once the policy has moved, and on-policy its gradient is that of the other KL, KL(reference ||
    policy) (DeepSeek-V3.2, 2025, arXiv:2512.02556, section 3.1).
    """
    ratio = (logprobs - proximal).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return ratio * kl_estimate(logprobs, reference, estimator)


def interpolation(versions: Tensor, version: int) -> Tensor:
    """``[N]`` how far from the behavior policy to the current one the proximal policy is, by their ages.

    (v_proximal - v_behavior) / (v_current - v_behavior), where the current policy is on its way to the version after
    the proximal one (A-3PO, 2025, arXiv:2512.06547). It is 0 on fresh tokens, whose behavior policy is the proximal.

    versions: ``[N]`` of the weights that each token was generated with. version: of the proximal policy.
    """
    age = (version - versions).clamp(min=0).float()
    return age / (age + 1)


def interpolated(batch: PackedBatch, logprobs: Tensor) -> PackedBatch:
    """The batch with ``proximal_logprobs`` between behavior and current ones, where it has an ``interpolation [N]``."""
    if "interpolation" not in batch:
        return batch
    behavior = batch["behavior_logprobs"]
    return batch.with_fields(
        proximal_logprobs=behavior + batch["interpolation"] * (logprobs.detach() - behavior).to(behavior.dtype)
    )


def behavior_weights(batch: PackedBatch, options: ops.PolicyLossOptions) -> Tensor:
    """``[N]`` the weight w of each token that the options' behavior says, 0 outside of ``loss_mask``.

    It is the kernel's own: the gradient of w * log-prob, which is CISPO's loss where the ratio is 1 and A is -1.
    """
    mask = batch["loss_mask"]
    if options.behavior is None:
        return mask.to(batch["loss_weight"].dtype)
    proximal = batch["proximal_logprobs"]
    ones = torch.ones_like(proximal)
    plain = replace(options, objective="cispo", ratio="token", dual_clip=None, kl_coef=0.0, entropy_coef=0.0)
    _, _, weights, _ = ops.policy_loss_and_gradients(
        *(proximal, None, -ones, proximal, mask, ones, plain),
        behavior_logprobs=batch["behavior_logprobs"],
        cu_seqlens=batch.cu_seqlens,
    )
    return weights


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


def loss_weights(batch: PackedBatch, aggregation: str, length: int | None = None) -> Tensor:
    """``[N]`` weight of each token in the loss; ``batch.counts`` are those of the mini-batch of all ranks.

    - ``token-mean``: 1 / tokens (DAPO; Yu et al., 2025, arXiv:2503.14476).
    - ``sequence-mean``: 1 / (tokens of the sequence * sequences), the mean of token means (GRPO).
    - ``sequence-sum``: 1 / sequences.
    - ``constant``: 1 / (length * sequences) (Dr.GRPO; Liu et al., 2025, arXiv:2503.20783).

    counts: generated ``tokens``, and ``sequences`` that have some. length: a number of tokens, for ``constant``.
    """
    mask = batch["loss_mask"].to(torch.float32)
    if aggregation == "token-mean":
        return mask / max(batch.counts["tokens"], 1.0)
    mask = mask / max(batch.counts["sequences"], 1.0)
    if aggregation == "constant":
        assert length is not None
        return mask / length
    if aggregation == "sequence-sum":
        return mask
    return mask / generated_tokens(batch).clamp(min=1.0)[batch.sequence_index]


def nll_weights(batch: PackedBatch) -> Tensor:
    """``[N]`` 1 / tokens of all right responses of the mini-batch, on their tokens (VAPO; Yue et al., 2025,
    arXiv:2504.05118); 0 elsewhere.

    batch: ``loss_mask [N]``, ``correct [B]``, the count ``correct_tokens``.
    """
    right = batch["loss_mask"] & batch["correct"][batch.sequence_index]
    return right.to(torch.float32) / max(batch.counts["correct_tokens"], 1.0)


def generated_tokens(batch: PackedBatch) -> Tensor:
    """``[B]`` float32, tokens of each sequence with ``loss_mask``."""
    mask = batch["loss_mask"].to(torch.float32)
    return torch.zeros(batch.num_sequences, device=mask.device).index_add(0, batch.sequence_index, mask)


def _sum(x: Tensor) -> Tensor:
    return x.double().sum().to(x.dtype)


def _token_means(batch: PackedBatch, names: Sequence[str], sums: Tensor) -> dict[str, Tensor]:
    """By name the part of a global token mean that this micro-batch contributes."""
    return dict(zip(names, (sums / max(batch.counts["tokens"], 1.0)).unbind(), strict=True))
