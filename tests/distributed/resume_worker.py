"""Started by torchrun on so many ranks: trains, saves and goes on under each of its layouts, then resumes from the
checkpoints of all others, those of other starts as well. `test_resume` compares the losses.

The main rank writes ``losses-RANKS.json``: [how the run of the checkpoint went on, how the resumed one did] by pair.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import VOCAB

from areal_mega.config.options import OptimizerOptions, ParallelOptions, PolicyOptions, RuntimeOptions
from areal_mega.data.packed import PackedBatch
from areal_mega.runtime import distributed
from areal_mega.runtime.checkpoint_folders import CheckpointFolders

LENGTHS = (5, 9, 30, 7)
OPTIMIZER = OptimizerOptions(lr=1e-2, min_lr_ratio=0.1, schedule="cosine", warmup_steps=2, weight_decay=0.1)
BEFORE, AFTER = 3, 3  # steps before the checkpoint, and after it


def main(folder: Path, ranks: int, every_layout: dict[str, list[int]]) -> None:
    """every_layout: ranks, tensor, pipeline by name, of this start and of the others."""
    mine = {name: ParallelOptions(tp, pp) for name, (n, tp, pp) in every_layout.items() if n == ranks}
    topology = distributed.initialize(RuntimeOptions(device="cpu"), next(iter(mine.values())), seed=1)
    for name, parallel in mine.items():
        topology = lay_out(parallel)
        train_and_save(topology, folder, name)
    found = {}
    for name, parallel in mine.items():
        topology = lay_out(parallel)
        for other in every_layout:
            if other != name:
                found[f"{other} -> {name}"] = [losses_of(folder / other), resume(topology, folder, other)]
    if topology.is_main:
        (folder / f"losses-{ranks}.json").write_text(json.dumps(found))
    topology.barrier()
    distributed.shutdown()


def lay_out(parallel: ParallelOptions) -> distributed.Topology:
    """The same ranks in another layout."""
    return distributed.split(parallel, torch.device("cpu"), seed=1, timeout=600)


def train_and_save(topology: distributed.Topology, folder: Path, name: str) -> None:
    from areal_mega.policy.checkpoints import CheckpointWriter

    models = build(topology, folder)
    for step in range(BEFORE):
        train(topology, models, step)
    writer = CheckpointWriter(topology, CheckpointFolders(folder / name), keep=1)
    writer.save(BEFORE, models, {})
    losses = [train(topology, models, step) for step in range(BEFORE, BEFORE + AFTER)]  # while it is written
    writer.finish()
    if topology.is_main:
        temporary = folder / name / "losses.tmp"
        temporary.write_text(json.dumps(losses))
        temporary.rename(folder / name / "losses.json")


def resume(topology: distributed.Topology, folder: Path, name: str) -> list[dict[str, float]]:
    from areal_mega.policy import checkpoints

    point = CheckpointFolders(folder / name).latest()
    assert point and checkpoints.broken(point, topology) == []
    models = build(topology, folder)
    checkpoints.load(point, models, topology)
    return [train(topology, models, step) for step in range(BEFORE, BEFORE + AFTER)]


def losses_of(run: Path) -> list[dict[str, float]]:
    """How the run went on that made the checkpoint; it may still be at it."""
    deadline = time.monotonic() + 500
    while not (run / "losses.json").exists():
        assert time.monotonic() < deadline, run
        time.sleep(0.2)
    return json.loads((run / "losses.json").read_text())


def build(topology: distributed.Topology, folder: Path) -> dict:
    from areal_mega.policy.model import MegatronModel

    def model(family: str, head) -> MegatronModel:
        return MegatronModel(
            topology, str(folder / family), PolicyOptions(), dtype="float32", optimizer=OPTIMIZER, head=head,
            total_steps=BEFORE + AFTER, seed=1,
        )  # fmt: skip

    return {"policy": model("qwen3", "logprob"), "critic": model("llama", "value")}


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
    main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
