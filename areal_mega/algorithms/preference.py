"""Losses on preference pairs: reward models and direct preference optimisation.

A batch holds pairs: sequences 2i and 2i + 1 are the chosen and the rejected answer to the same prompt, and a
micro-batch never has one without the other (``unit``, see `areal_mega.data.PackedBatch.units`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from areal_mega.algorithms.losses import generated_tokens
from areal_mega.data import PackedBatch


@dataclass(frozen=True)
class DPOLoss:
    """DPO and its kin. With r = beta * (log pi - log reference) of an answer and h = r_chosen - r_rejected:

    - ``sigmoid``: -(1 - e) log sigmoid(h) - e log sigmoid(-h). DPO (Rafailov et al., 2023, arXiv:2305.18290, eq. 7)
      where e = label_smoothing is 0, else conservative DPO: a label is wrong with probability e (Mitchell, "A note on
      DPO with noisy preferences", 2023).
    - ``ipo``: (h / beta - 1 / (2 beta))^2 (Azar et al., 2023, arXiv:2310.12036, eq. 17).
    - ``nca_pair``: -log sigmoid(r_chosen) - log sigmoid(-r_chosen) / 2 - log sigmoid(-r_rejected) / 2 (Chen et al.,
      2024, arXiv:2402.05369, for pairs of which one is right and one wrong).

    average: log-probs of an answer are the mean of its tokens', not the sum.
    """

    kind: str
    beta: float
    label_smoothing: float = 0.0
    average: bool = False

    def __call__(self, batch: PackedBatch, outputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a micro-batch of pairs and its statistics; both add up over micro-batches and ranks.

        batch: ``loss_mask`` (the answers), ``reference_logprobs``, ``[N]``; the count ``sequences`` of all ranks.
        outputs: ``logprobs [N]``.
        """
        mask = batch["loss_mask"]
        log_ratios = torch.where(mask, outputs["logprobs"] - batch["reference_logprobs"], 0.0)
        chosen, rejected = _by_pair(self._over_tokens(batch, log_ratios))
        losses = self.of_pairs(self.beta * chosen, self.beta * rejected)
        likelihood = self._over_tokens(batch, torch.where(mask, outputs["logprobs"].detach(), 0.0))
        shown = dict(zip(("chosen_logprob", "rejected_logprob"), _by_pair(likelihood), strict=True))
        return _means(batch, losses, self.beta * chosen.detach(), self.beta * rejected.detach(), shown)

    def of_pairs(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """``[P]`` losses of pairs from the implicit rewards of their answers, ``[P]`` each."""
        if self.kind == "nca_pair":
            return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)
        margin = chosen - rejected
        if self.kind == "ipo":
            return (margin / self.beta - 1 / (2 * self.beta)).square()
        return -(1 - self.label_smoothing) * logsigmoid(margin) - self.label_smoothing * logsigmoid(-margin)

    def _over_tokens(self, batch: PackedBatch, x: Tensor) -> Tensor:
        sums = _sums(batch, x)
        return sums / generated_tokens(batch).clamp(min=1.0) if self.average else sums


@dataclass(frozen=True)
class RewardLoss:
    """Of a reward model: -log sigmoid(r_chosen - r_rejected - margin), the model of Bradley and Terry (1952).

    The margin is Llama 2's (Touvron et al., 2023, arXiv:2307.09288, section 3.2.2): how much better the answer is.
    center_coef: weight of (r_chosen + r_rejected)^2, which keeps rewards around 0 (Eisenstein et al., 2023,
    arXiv:2312.09244).
    """

    center_coef: float = 0.0

    def __call__(self, batch: PackedBatch, outputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a micro-batch of pairs and its statistics; both add up over micro-batches and ranks.

        batch: ``loss_mask``, of the one token behind each answer, whose value is the answer's reward; ``margin [B]``;
        the count ``sequences`` of all ranks. outputs: ``values [N]``.
        """
        values = torch.where(batch["loss_mask"], outputs["values"], 0.0)
        chosen, rejected = _by_pair(_sums(batch, values))
        losses = self.of_pairs(chosen, rejected, _by_pair(batch["margin"].double())[0])
        return _means(batch, losses, chosen.detach(), rejected.detach())

    def of_pairs(self, chosen: Tensor, rejected: Tensor, margin: Tensor) -> Tensor:
        """``[P]`` losses of pairs from rewards and margins, ``[P]`` each."""
        losses = -logsigmoid(chosen - rejected - margin)
        return losses + self.center_coef * (chosen + rejected).square() if self.center_coef else losses


def _sums(batch: PackedBatch, x: Tensor) -> Tensor:
    """``[B]`` float64 sums over the tokens of each sequence: there are many, and small differences count."""
    zeros = torch.zeros(batch.num_sequences, dtype=torch.float64, device=x.device)
    return zeros.index_add(0, batch.sequence_index, x.double())


def _by_pair(x: Tensor) -> tuple[Tensor, Tensor]:
    """``[B]`` → what belongs to the chosen and to the rejected answers, ``[P]`` each."""
    chosen, rejected = x.view(-1, 2).unbind(1)
    return chosen, rejected


def _means(
    batch: PackedBatch, losses: Tensor, chosen: Tensor, rejected: Tensor, shown: dict[str, Tensor] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The parts that these pairs have in the means over all pairs of the step. Where rewards are equal, as before the
    first step of DPO, half a pair is right. Pairs that only fill up a micro-batch have no answers, and no part."""
    weight = (_by_pair(generated_tokens(batch))[0] > 0).double() / max(batch.counts["sequences"] / 2, 1.0)
    columns = {
        "accuracy": (chosen > rejected).double() + 0.5 * (chosen == rejected),
        "margin": chosen - rejected,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
        **(shown or {}),
    }
    return (weight * losses).sum().float(), {name: (weight * column).sum() for name, column in columns.items()}
