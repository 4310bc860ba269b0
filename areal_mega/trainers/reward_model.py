"""A reward model: one number for an answer, learned from pairs of which one was found better.

An answer's reward is the value head's output after its last token. By the one alignment rule a value stands at the
token that follows: so each answer gets one more token, whose value it is, and which says nothing else.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from areal_mega.algorithms.preference import RewardLoss
from areal_mega.config.options import DataSetOptions, RewardModelOptions
from areal_mega.data.pairs import Pair, pack_pairs, read_pairs
from areal_mega.data.tokenizer import load_tokenizer
from areal_mega.policy.spec import read_config
from areal_mega.runtime.distributed import Topology
from areal_mega.trainers import report
from areal_mega.trainers.supervised import SupervisedTrainer, Task


def run(options: RewardModelOptions, topology: Topology, directory: Path) -> None:
    """A whole run: read, train, save, report."""
    started = time.perf_counter()
    o = options
    read_config(o.model.path)
    tokenizer = load_tokenizer(o.model.path)

    def read(name: str, how: DataSetOptions) -> list[Pair]:
        pairs = read_pairs(how.path, name, tokenizer, o.max_tokens, how, o.data.unusable == "skip", o.use_margin)
        return [scored_at_the_end(pair, tokenizer.eos_token_id) for pair in pairs]

    task = Task(
        name="reward",
        read=read,
        pack=pack_pairs,
        head="value",
        loss=RewardLoss(o.center_coef),
        held_out=("loss", "accuracy", "margin"),
        columns=report.pair_columns("reward"),
        panels=report.REWARD_PANELS,
    )
    SupervisedTrainer(options, topology, directory, task).run(started)


def scored_at_the_end(pair: Pair, token: int) -> Pair:
    """The pair with one more token behind each answer, the only one in the loss."""
    chosen, rejected = (
        {"tokens": [*s["tokens"], token], "loss_mask": [False] * len(s["tokens"]) + [True]}
        for s in (pair.chosen, pair.rejected)
    )
    return replace(pair, chosen=chosen, rejected=rejected)
