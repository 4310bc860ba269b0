"""From finished samples to a batch that can be trained on.

Every rank holds the whole batch of samples (tokens and engine facts); what needs a model is computed only for
the sequences that the rank's data-parallel replica trains on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from areal_mega import ops
from areal_mega.algorithms.advantages import group_advantages, token_rewards, whiten
from areal_mega.algorithms.kl import kl_estimate
from areal_mega.algorithms.losses import loss_weights
from areal_mega.config.options import AlgorithmOptions
from areal_mega.data import PackedBatch, Sample
from areal_mega.data.mini_batches import mini_batches


def pack_samples(samples: Sequence[Sample]) -> PackedBatch:
    """The samples as a batch with the engine's facts and the rewards; ``turn_rewards`` where there are any."""
    by_turn = any(turn.reward for s in samples for turn in s.turns)
    return PackedBatch.pack(
        [
            {
                "tokens": s.tokens,
                "loss_mask": s.loss_mask,
                "behavior_logprobs": s.behavior_logprobs,
                **({"turn_rewards": s.turn_rewards} if by_turn else {}),
            }
            for s in samples
        ],
        {
            "reward": torch.tensor([s.reward for s in samples]),
            "group": torch.tensor([s.group for s in samples]),
        },
    )


@dataclass(frozen=True)
class Share:
    """What one data-parallel replica trains on in a step.

    batch: the replica's sequences, mini-batch after mini-batch. sizes: sequences of each mini-batch.
    counts: generated tokens and sequences of each *global* mini-batch.
    """

    batch: PackedBatch
    sizes: list[int]
    counts: list[dict[str, float]]

    def mini_batch(self, index: int, aggregation: str) -> PackedBatch:
        """One mini-batch of the share, with the global counts and the loss weights."""
        start = sum(self.sizes[:index])
        counts = self.counts[index]
        batch = self.batch.select(range(start, start + self.sizes[index])).with_counts(**counts)
        return batch.with_fields(loss_weight=loss_weights(batch, aggregation, **counts))

    def with_fields(self, **fields: Tensor) -> Share:
        return replace(self, batch=self.batch.with_fields(**fields))


def share_of(batch: PackedBatch, count: int, rank: int, ranks: int, seed: int) -> Share:
    """The share of data-parallel rank ``rank`` when the batch is cut into ``count`` mini-batches."""
    plan = mini_batches(batch.lengths.tolist(), count, ranks, seed)
    generated = torch.zeros(batch.num_sequences).index_add(0, batch.sequence_index, batch["loss_mask"].float())
    counts = []
    for mini_batch in plan:
        indices = [i for share in mini_batch for i in share]
        counts.append({"tokens": float(generated[indices].sum()), "sequences": float(len(indices))})
    mine = [mini_batch[rank] for mini_batch in plan]
    return Share(batch.select([i for share in mine for i in share]), [len(share) for share in mine], counts)


def add_group_advantages(batch: PackedBatch, options: AlgorithmOptions) -> PackedBatch:
    """The whole batch with group-relative ``advantages``, the same on all tokens of a sample.

    A sample counts for all it earned, on the whole and by turns.
    """
    rewards = batch["reward"]
    if "turn_rewards" in batch:
        rewards = rewards.index_add(0, batch.sequence_index, batch["turn_rewards"])
    advantages = group_advantages(rewards, batch["group"], options.group_std)
    return batch.with_fields(advantages=advantages[batch.sequence_index] * batch["loss_mask"])


def add_gae(batch: PackedBatch, options: AlgorithmOptions, all_reduce: Callable[[Tensor], Tensor]) -> PackedBatch:
    """A share with ``advantages`` and ``returns`` by GAE; the KL penalty counts here if it is a reward.

    batch: ``values``, ``proximal_logprobs`` and, with KL, ``reference_logprobs``.
    """
    kl = None
    if options.kl_coef and options.kl_in == "reward":
        kl = kl_estimate(batch["proximal_logprobs"], batch["reference_logprobs"], options.kl_estimator)
    advantages, returns = ops.gae(
        token_rewards(batch, kl, options.kl_coef),
        batch["values"],
        batch.cu_seqlens,
        options.gamma,
        options.gae_lambda,
        loss_mask=batch["loss_mask"],
    )
    if options.normalize_advantages:
        advantages = whiten(advantages, batch["loss_mask"], all_reduce)
    return batch.with_fields(advantages=advantages, returns=returns)


def policy_loss_options(options: AlgorithmOptions) -> ops.PolicyLossOptions:
    """The part of the algorithm that is the policy's loss; a KL that is a reward has no part in it."""
    a, cap = options, options.behavior_cap
    return ops.PolicyLossOptions(
        objective=a.objective,
        clip_low=a.clip_low,
        clip_high=a.clip_high,
        dual_clip=a.dual_clip,
        ratio=a.ratio,
        behavior="token" if cap is not None else None if a.behavior == "none" else a.behavior,
        behavior_mode=a.behavior_mode,
        behavior_low=a.behavior_low,
        behavior_high=a.behavior_high if cap is None else cap,
        kl_coef=a.kl_coef if a.kl_in == "loss" else 0.0,
        kl_estimator=a.kl_estimator,
        entropy_coef=a.entropy_coef,
    )
