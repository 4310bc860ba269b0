"""The main rank cuts a batch into shares of about equal work, and each data-parallel replica gets its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from areal_mega.config.options import PPOOptions
from areal_mega.data import Sample
from areal_mega.data.mini_batches import mini_batches
from areal_mega.policy.work import imbalance, sequence_work
from areal_mega.runtime.distributed import Topology
from areal_mega.trainers.experience import Share, pack_samples, shares_of, with_rewards


def exchange(
    samples: Sequence[Sample] | None, options: PPOOptions, topology: Topology, hf: Any, step: int
) -> tuple[Share, dict[str, float]]:
    """This replica's share of the samples, which have their rewards and are compared within their groups already.

    All ranks call it together. samples: of the whole batch, on the main rank, which also has the metrics. hf: Hugging
    Face config of the model that is trained.
    """
    shares, metrics = None, {}
    if samples is not None:
        a, seed = options.algorithm, options.seed * 1_000_003 + step
        batch = with_rewards(pack_samples(samples), a, options.rollout.max_new_tokens)
        work = sequence_work(hf, batch.lengths.tolist())
        shares = shares_of(batch, work, a.mini_batches, topology.dp, seed)
        metrics = balance_metrics(work, a.mini_batches, topology.dp, seed)
    return topology.scatter_over_dp(shares), metrics


def balance_metrics(work: Sequence[int], count: int, ranks: int, seed: int) -> dict[str, float]:
    """``balance/after``: the largest over the mean work of a replica. ``balance/before``: if the sequences were dealt
    out in turn."""
    plan = mini_batches(work, count, ranks, seed)
    whole = [sorted(i for share in mini_batch for i in share) for mini_batch in plan]
    dealt = [[mini_batch[rank::ranks] for rank in range(ranks)] for mini_batch in whole]
    return {"balance/before": imbalance(work, dealt), "balance/after": imbalance(work, plan)}
