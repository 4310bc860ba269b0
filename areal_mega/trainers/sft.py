"""Supervised fine-tuning: the same policy and packing, loss on the answers only."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from areal_mega.algorithms.losses import sft_loss
from areal_mega.config.options import DataSetOptions, SFTOptions
from areal_mega.data import PackedBatch
from areal_mega.data.jsonl import read_answers
from areal_mega.data.tokenizer import load_tokenizer
from areal_mega.policy.spec import read_config
from areal_mega.runtime.distributed import Topology
from areal_mega.trainers import report
from areal_mega.trainers.supervised import SupervisedTrainer, Task


def run(options: SFTOptions, topology: Topology, directory: Path) -> None:
    """A whole run: read, train, save, report."""
    started = time.perf_counter()
    read_config(options.model.path)
    tokenizer = load_tokenizer(options.model.path)
    skip = options.data.unusable == "skip"

    def read(name: str, how: DataSetOptions) -> list[dict[str, list]]:
        return read_answers(how.path, name, tokenizer, options.max_tokens, how, skip)

    SupervisedTrainer(options, topology, directory, sft_task(read)).run(started)


def sft_task(read: Callable[[str, DataSetOptions], list[dict[str, list]]]) -> Task:
    """Learn to say the answers that ``read`` gives."""
    return Task(
        name="sft",
        read=read,
        pack=PackedBatch.pack,
        head="logprob",
        loss=sft_loss,
        held_out=("loss",),
        columns=report.SFT_COLUMNS,
        panels=report.SFT_PANELS,
    )
