"""Started by torchrun on so many ranks: trains, saves and goes on under each of its layouts, then resumes from the
checkpoints of others, those of other starts as well. `test_resume` compares the losses.

It reads ``work.json``: a run, its models, the layout of a checkpoint and the one it is resumed under. The main rank
writes ``losses-RANKS.json``: the same with how either went on.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from distributed.layouts import LAYOUTS
from models import VOCAB

from areal_mega.config.options import OptimizerOptions, PolicyOptions, RuntimeOptions
from areal_mega.data.packed import PackedBatch
from areal_mega.runtime import distributed
from areal_mega.runtime.checkpoint_folders import CheckpointFolders

LENGTHS = (5, 9, 30, 7)
OPTIMIZER = OptimizerOptions(lr=1e-2, min_lr_ratio=0.1, schedule="cosine", warmup_steps=2, weight_decay=0.1)
BEFORE, AFTER = 3, 3  # steps before the checkpoint, and after it


def main(folder: Path) -> None:
    work = json.loads((folder / "work.json").read_text())
    ranks = int(os.environ["WORLD_SIZE"])
    mine = sorted((w for w in work if LAYOUTS[w["resumed"]].ranks == ranks), key=lambda w: w["resumed"])
    saved = {(w["saved"], w["run"]): w["models"] for w in work if LAYOUTS[w["saved"]].ranks == ranks}
    ranks_laid_out = Ranks()
    for (name, run), models in sorted(saved.items()):
        train_and_save(ranks_laid_out.by(name), folder, models, folder / run / name)
    for item in mine:
        topology = ranks_laid_out.by(item["resumed"])
        point = folder / item["run"] / item["saved"]
        item["went_on"] = losses_of(point)
        item["went_on_resumed"] = resume(topology, folder, item["models"], point)
    if int(os.environ["RANK"]) == 0:
        (folder / f"losses-{ranks}.json").write_text(json.dumps(mine))
    if mine:
        torch.distributed.barrier()
    distributed.shutdown()


class Ranks:
    """The same ranks in one layout after the other. Each has process groups of its own, and the threads of the last
    ones end with them: those of forty layouts at once bring the machine to a halt."""

    def __init__(self) -> None:
        self.starts = 0
        self.name = ""
        self.topology: distributed.Topology

    def by(self, name: str) -> distributed.Topology:
        if name != self.name:
            gc.collect()  # models in circles hold on to their groups
            distributed.shutdown()
            os.environ["TORCHELASTIC_RESTART_COUNT"] = str(
                self.starts
            )  # by which ranks that start anew find each other
            options = RuntimeOptions(device="cpu", timeout=1200)
            self.topology = distributed.initialize(options, LAYOUTS[name].options.parallel, seed=1)
            self.name, self.starts = name, self.starts + 1
        return self.topology


def train_and_save(topology: distributed.Topology, folder: Path, families: dict[str, str], run: Path) -> None:
    from areal_mega.policy.checkpoints import CheckpointWriter

    models = build(topology, folder, families)
    for step in range(BEFORE):
        train(topology, models, step)
    writer = CheckpointWriter(topology, CheckpointFolders(run), keep=1)
    writer.save(BEFORE, models, {})
    losses = [train(topology, models, step) for step in range(BEFORE, BEFORE + AFTER)]  # while it is written
    writer.finish()
    if topology.is_main:
        temporary = run / "losses.tmp"
        temporary.write_text(json.dumps(losses))
        temporary.rename(run / "losses.json")


def resume(topology: distributed.Topology, folder: Path, families: dict[str, str], run: Path) -> list[dict[str, float]]:
    from areal_mega.policy import checkpoints

    point = CheckpointFolders(run).latest()
    assert point and checkpoints.broken(point, topology) == []
    models = build(topology, folder, families)
    checkpoints.load(point, models, topology)
    return [train(topology, models, step) for step in range(BEFORE, BEFORE + AFTER)]


def losses_of(run: Path) -> list[dict[str, float]]:
    """How the run went on that made the checkpoint; it may still be at it."""
    deadline = time.monotonic() + 1400
    while not (run / "losses.json").exists():
        assert time.monotonic() < deadline, run
        time.sleep(0.2)
    return json.loads((run / "losses.json").read_text())


def build(topology: distributed.Topology, folder: Path, families: dict[str, str]) -> dict:
    from areal_mega.policy.model import MegatronModel

    return {
        name: MegatronModel(
            topology, str(folder / family), PolicyOptions(), dtype="float32", optimizer=OPTIMIZER,
            head="value" if name == "critic" else "logprob", total_steps=BEFORE + AFTER, seed=1,
        )
        for name, family in families.items()
    }  # fmt: skip


def train(topology: distributed.Topology, models: dict, step: int) -> dict[str, float]:
    """One step of every model; their losses and gradient norms."""
    generator = torch.Generator().manual_seed(step)
    rows = []
    for n in LENGTHS:
        mask = torch.arange(n) > 0
        rows.append({"tokens": torch.randint(0, VOCAB, (n,), generator=generator), "loss_mask": mask})
    batch = PackedBatch.pack(rows).with_counts(tokens=float(sum(LENGTHS) - len(LENGTHS)))
    share = batch.select(range(topology.dp_rank, len(LENGTHS), topology.dp))
    results = {name: model.train_step(share, loss) for name, model in models.items()}
    return {f"{name} {what}": r[what] for name, r in results.items() for what in ("loss", "grad_norm")}


def loss(batch: PackedBatch, outputs: dict[str, Tensor]) -> tuple[Tensor, dict]:
    if "logprobs" in outputs:
        return -outputs["logprobs"].sum() / batch.counts["tokens"], {}
    return ((outputs["values"] - 1).square() * batch["loss_mask"]).sum() / batch.counts["tokens"], {}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
