"""Direct preference optimisation: a policy learns from pairs of answers, measured against a frozen reference."""

from __future__ import annotations

import time
from pathlib import Path

from areal_mega.algorithms.preference import DPOLoss
from areal_mega.config.options import DataSetOptions, DPOOptions
from areal_mega.data.pairs import Pair, pack_pairs, read_pairs
from areal_mega.data.tokenizer import check_same_tokens, load_tokenizer
from areal_mega.policy.model import MegatronModel
from areal_mega.policy.spec import read_config
from areal_mega.runtime.distributed import Topology
from areal_mega.trainers import report
from areal_mega.trainers.experience import Share
from areal_mega.trainers.supervised import SupervisedTrainer, Task


def run(options: DPOOptions, topology: Topology, directory: Path) -> None:
    """A whole run: read, train, save, report."""
    started = time.perf_counter()
    o, origin = options, options.reference_path or options.model.path
    for folder in (o.model.path, origin):
        read_config(folder)
    if o.reference_path:
        check_same_tokens(o.model.path, "reference_path", o.reference_path)
    tokenizer = load_tokenizer(o.model.path)

    def read(name: str, how: DataSetOptions) -> list[Pair]:
        return read_pairs(how.path, name, tokenizer, o.max_tokens, how, o.data.unusable == "skip")

    def prepare(share: Share) -> Share:
        return share.with_fields(reference_logprobs=reference.forward(share.batch)["logprobs"])

    task = Task(
        name="dpo",
        read=read,
        pack=pack_pairs,
        head="logprob",
        loss=DPOLoss(o.loss, o.beta, o.label_smoothing, o.averages),
        held_out=("loss", "accuracy", "margin"),
        columns=report.pair_columns("dpo"),
        panels=report.DPO_PANELS,
        prepare=prepare,
    )
    trainer = SupervisedTrainer(options, topology, directory, task)
    # After the data and the checkpoint, which may have errors that take no time to find.
    reference = MegatronModel(
        topology, origin, o.policy, dtype=o.model.dtype, optimizer=None, head="logprob", seed=o.seed
    )
    trainer.run(started)
