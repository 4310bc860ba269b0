"""From finished samples to a batch that can be trained on.

What needs the whole batch is computed on the main rank, before it is cut into shares; what needs a model, by each
data-parallel replica for its share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from areal_mega import ops
from areal_mega.algorithms.adaptive import Adaptive, KLCoefficient, ValueNorm
from areal_mega.algorithms.advantages import (
    AllReduce,
    normalize_tokens,
    overlong_penalty,
    sample_advantages,
    teacher_advantages,
    token_rewards,
)
from areal_mega.algorithms.kl import kl_estimate
from areal_mega.algorithms.losses import (
    PolicyLoss,
    SoftGate,
    generated_tokens,
    interpolation,
    loss_weights,
    nll_weights,
)
from areal_mega.algorithms.trust_region import second_moment_mask
from areal_mega.config.options import AlgorithmOptions
from areal_mega.data import PackedBatch, Sample
from areal_mega.data.mini_batches import mini_batches
from areal_mega.data.packed import ROUTED


def pack_samples(samples: Sequence[Sample]) -> PackedBatch:
    """The samples as a batch with the engine's facts and the rewards; ``turn_rewards`` where there are any, and
    ``routed_experts [N, layers * k]``, -1 where they are not known."""
    by_turn = any(turn.reward for s in samples for turn in s.turns)
    width = max((s.routes.shape[1] for s in samples if s.routes is not None), default=0)
    return PackedBatch.pack(
        [
            {
                "tokens": s.tokens,
                "loss_mask": s.loss_mask,
                "behavior_logprobs": s.behavior_logprobs,
                "versions": s.versions,
                **({"turn_rewards": s.turn_rewards} if by_turn else {}),
                **({ROUTED: _routes(s, width)} if width else {}),
            }
            for s in samples
        ],
        {
            "reward": torch.tensor([s.reward for s in samples]),
            "greedy_reward": torch.tensor([s.greedy_reward for s in samples]),
            "group": torch.tensor([s.group for s in samples]),
            "correct": torch.tensor([s.correct for s in samples]),
            "truncated": torch.tensor([s.truncated for s in samples]),
        },
    )


def _routes(sample: Sample, width: int) -> Tensor:
    routes = torch.full((len(sample.tokens), width), -1, dtype=torch.int16)
    if sample.routes is not None:
        routes[: len(sample.routes)] = torch.from_numpy(sample.routes)
    return routes


def with_rewards(batch: PackedBatch, options: AlgorithmOptions, longest: int) -> PackedBatch:
    """The whole batch with rewards as the algorithm takes them.

    The penalty of long responses is in ``reward [B]``; the groups count from 0 to the count ``groups``; without a
    critic ``reward`` is what is left of it over the baseline; and with mask_truncated a truncated sequence has no
    generated tokens any more.

    longest: rollout.max_new_tokens.
    """
    o, reward = options, batch["reward"]
    if o.overlong_buffer is not None:
        reward = reward + o.overlong_penalty * overlong_penalty(generated_tokens(batch), longest, o.overlong_buffer)
    names, groups = torch.unique(batch["group"], return_inverse=True)
    if not o.has_critic:
        if "turn_rewards" in batch:  # a sample counts for all it earned, on the whole and by turns
            reward = reward.index_add(0, batch.sequence_index, batch["turn_rewards"])
        reward = sample_advantages(reward, groups, o.advantage, o.reward_std, batch["greedy_reward"])
    batch = replace(batch, sequence_fields={**batch.sequence_fields, "reward": reward, "group": groups})
    if o.mask_truncated:
        batch = batch.with_fields(loss_mask=batch["loss_mask"] & ~batch["truncated"][batch.sequence_index])
    return batch.with_counts(groups=float(len(names)))


@dataclass(frozen=True)
class Share:
    """What one data-parallel replica trains on in a step.

    batch: the replica's sequences, mini-batch after mini-batch. sizes: sequences of each mini-batch.
    counts: what each *global* mini-batch has: generated ``tokens``, those of right responses (``correct_tokens``), and
    ``sequences`` with generated tokens.
    """

    batch: PackedBatch
    sizes: list[int]
    counts: list[dict[str, float]]

    def mini_batch(self, index: int, aggregation: str, aggregation_length: int | None = None) -> PackedBatch:
        """One mini-batch of the share, with the global counts and the loss weights."""
        start = sum(self.sizes[:index])
        batch = self.batch.select(range(start, start + self.sizes[index])).with_counts(**self.counts[index])
        batch = batch.with_fields(loss_weight=loss_weights(batch, aggregation, aggregation_length))
        return batch.with_fields(nll_weight=nll_weights(batch)) if "correct" in batch else batch

    def with_fields(self, **fields: Tensor) -> Share:
        return replace(self, batch=self.batch.with_fields(**fields))


def shares_of(batch: PackedBatch, work: Sequence[int], count: int, ranks: int, seed: int) -> list[Share]:
    """The shares of all data-parallel ranks when the batch is cut into ``count`` mini-batches.

    work: of each sequence; the shares have about the same.
    """
    plan = mini_batches(work, count, ranks, seed)
    counts = _counts(batch, plan)
    return [_share(batch, plan, counts, rank) for rank in range(ranks)]


def share_of(batch: PackedBatch, count: int, rank: int, ranks: int, seed: int) -> Share:
    """One of `shares_of` where every rank has the whole batch, whose `units` stay together; the work is the tokens."""
    units = batch.units
    by_unit = mini_batches(batch.unit_lengths, count, ranks, seed)
    plan = [[[i for unit in share for i in units[unit]] for share in mini_batch] for mini_batch in by_unit]
    return _share(batch, plan, _counts(batch, plan), rank)


def _counts(batch: PackedBatch, plan: Sequence[Sequence[Sequence[int]]]) -> list[dict[str, float]]:
    generated = generated_tokens(batch)
    correct = generated * batch["correct"] if "correct" in batch else torch.zeros_like(generated)
    counts = []
    for mini_batch in plan:
        indices = [i for share in mini_batch for i in share]
        numbers = {"tokens": generated, "correct_tokens": correct, "sequences": generated > 0}
        counts.append({name: float(x[indices].sum()) for name, x in numbers.items()})
    return counts


def _share(
    batch: PackedBatch, plan: Sequence[Sequence[Sequence[int]]], counts: list[dict[str, float]], rank: int
) -> Share:
    mine = [mini_batch[rank] for mini_batch in plan]
    return Share(batch.select([i for share in mine for i in share]), [len(share) for share in mine], counts)


def with_anchor(batch: PackedBatch, proximal: str, version: int) -> PackedBatch:
    """A share of a batch with ``proximal_logprobs`` that need no forward pass: the engine's.

    proximal: ``behavior``; or ``interpolated``, which adds the ``interpolation`` by which the loss moves them.
    version: of the weights before the step.
    """
    batch = batch.with_fields(proximal_logprobs=batch["behavior_logprobs"])
    if proximal == "interpolated":
        batch = batch.with_fields(interpolation=interpolation(batch["versions"], version))
    return batch


def with_advantages(
    batch: PackedBatch, options: AlgorithmOptions, adaptive: Adaptive, all_reduce: AllReduce
) -> PackedBatch:
    """A share of a batch `with_rewards` with ``advantages`` and, with a critic, ``returns`` as it learns them; with
    m2_threshold also ``trusted``, False on the tokens left out, whose advantage is 0.

    The advantages are GAE's over the critic's values. Without a critic they are what is still to come of the reward,
    discounted: GAE with values 0 and lambda 1. The KL counts here if it is a reward. With ``distill`` they are those of
    the teacher.

    batch: ``proximal_logprobs``, with KL also ``reference_logprobs``, with a critic also ``values``, its outputs.
    """
    o, norm = options, adaptive.value_norm
    kl = None
    if o.kl_coef and o.kl_in == "reward":
        kl = kl_estimate(batch["proximal_logprobs"], batch["reference_logprobs"], o.kl_estimator)
    rewards = token_rewards(batch, batch["reward"], kl, adaptive.kl.coef)
    if o.has_critic and "turn_rewards" in batch:
        rewards = rewards + torch.where(batch["loss_mask"], batch["turn_rewards"], 0)
    values = batch["values"] if o.has_critic else torch.zeros_like(rewards)
    lam: float | Tensor = o.gae_lambda if o.has_critic else 1.0
    if o.length_adaptive_alpha is not None:
        lam = ops.length_adaptive_lambda(generated_tokens(batch).clamp(min=1), o.length_adaptive_alpha)
    advantages, returns = ops.gae(
        rewards,
        norm.denormalize(values) if norm else values,
        batch.cu_seqlens,
        o.gamma,
        lam,
        loss_mask=batch["loss_mask"],
        critic_lam=o.critic_lambda,
    )
    if norm:
        norm.update(returns[batch["loss_mask"]], all_reduce)
        returns = torch.where(batch["loss_mask"], norm.normalize(returns), 0)
    if o.advantage == "distill":
        advantages = teacher_advantages(batch)
    if o.advantage_level != "none":
        advantages = normalize_tokens(batch, advantages, o.advantage_level, all_reduce)
    if o.m2_threshold is not None:
        log_ratios = batch["proximal_logprobs"] - batch["behavior_logprobs"]
        trusted = second_moment_mask(log_ratios, advantages, batch["loss_mask"], o.m2_threshold, all_reduce)
        batch, advantages = batch.with_fields(trusted=trusted), torch.where(trusted, advantages, 0)
    return batch.with_fields(advantages=advantages, **({"returns": returns} if o.has_critic else {}))


def adaptive_of(options: AlgorithmOptions) -> Adaptive:
    """The numbers that change in a run, as it begins."""
    o = options
    norm = None if o.value_norm is None else ValueNorm(o.value_norm)
    return Adaptive(KLCoefficient(o.kl_coef, o.kl_target, o.kl_horizon), norm)


def policy_loss_of(options: AlgorithmOptions, kl_coef: float) -> PolicyLoss:
    """The part of the algorithm that is the policy's loss; a KL that is a reward has no part in it.

    kl_coef: the weight of the KL now.
    """
    o, cap = options, options.behavior_cap
    if o.kl_in == "reward":
        kl_coef = 0.0
    fused = ops.PolicyLossOptions(
        objective="clip" if o.objective == "sapo" else o.objective,
        clip_low=o.clip_low,
        clip_high=o.clip_high,
        dual_clip=o.dual_clip,
        ratio=o.ratio,
        behavior="token" if cap is not None else None if o.behavior == "none" else o.behavior,
        behavior_mode=o.behavior_mode,
        behavior_low=o.behavior_low,
        behavior_high=o.behavior_high if cap is None else cap,
        kl_coef=0.0 if o.kl_unbiased else kl_coef,
        kl_estimator=o.kl_estimator,
        entropy_coef=o.entropy_coef,
    )
    return PolicyLoss(
        fused,
        soft_gate=SoftGate(o.sapo_tau_positive, o.sapo_tau_negative) if o.objective == "sapo" else None,
        unbiased_kl_coef=kl_coef if o.kl_unbiased else 0.0,
        nll_coef=o.positive_nll_coef,
    )
