"""Started by `delta` under torchrun: trains, sends what changed and everything, and writes what each took."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from areal_mega.algorithms.losses import loss_weights, sft_loss
from areal_mega.config.options import (
    OptimizerOptions,
    ParallelOptions,
    PolicyOptions,
    ReshardingOptions,
    RolloutOptions,
    RuntimeOptions,
)
from areal_mega.data import PackedBatch
from areal_mega.data.tokenizer import load_tokenizer
from areal_mega.resharding.deployment import deploy
from areal_mega.resharding.disaggregated import DisaggregatedTransport
from areal_mega.resharding.layouts import SGLangGrid
from areal_mega.resharding.weight_sync import WeightSync
from areal_mega.rollout.server import SGLangServer
from areal_mega.runtime import distributed

SEQUENCE = 128  # tokens
SECONDS = ("seconds", "seconds_pack", "seconds_send", "seconds_load")


def main(job: dict[str, Any]) -> None:
    topology = distributed.initialize(RuntimeOptions(device="cpu"), ParallelOptions(), seed=1)
    rollout = RolloutOptions(max_prompt_tokens=32, max_new_tokens=32, start_timeout=600)
    log = Path(job["folder"]) / "engine.log"
    with SGLangServer(job["model"], rollout, dtype=job["dtype"], device="cpu", seed=1, log_path=log) as engine:
        rows = [row for lr in job["lr"] for row in train(topology, engine, job, lr)]
        (Path(job["folder"]) / "found.json").write_text(json.dumps(rows))
    distributed.shutdown()


def train(topology: distributed.Topology, engine: SGLangServer, job: dict[str, Any], lr: float) -> Iterator[dict]:
    """A row for each step at a learning rate."""
    from areal_mega.policy.model import MegatronModel

    model = MegatronModel(
        topology,
        job["model"],
        PolicyOptions(parallel=topology.parallel),
        dtype=job["dtype"],
        optimizer=OptimizerOptions(lr=lr),
        head="logprob",
        total_steps=job["steps"],
        seed=1,
    )
    grid = SGLangGrid(cpu=True)
    deployment = deploy(model.hf, topology.gather(model.place), grid, colocated=False, per_node=1)
    transport = DisaggregatedTransport(topology, deployment, model.held_weights, 1 << 30, remember=True)
    options = ReshardingOptions()
    sync = WeightSync(topology, deployment, transport, options, [engine])
    sync.send(1)
    for step, batch in zip(range(1, job["steps"] + 1), batches(job), strict=False):
        loss = model.train_step(batch, sft_loss)["loss"]
        reports = {}
        for name, delta in (("", True), ("_whole", False)):
            options.delta = delta
            options.verify = "always" if step == job["steps"] else "never"
            reports[name] = sync.send(2 * step + (not delta))
        row = {"lr": lr, "step": step, "loss": loss, "dtype": job["dtype"], "load": os.getloadavg()[0]}
        row |= {name: getattr(reports[""], name) for name in ("changed", "bytes_moved", "bytes_full")}
        for name, report in reports.items():
            row |= {f"{field}{name}": getattr(report, field) for field in SECONDS}
        yield row


def batches(job: dict[str, Any]) -> Iterator[PackedBatch]:
    """Runs of tokens of the text, all different."""
    tokenizer = load_tokenizer(job["model"])
    tokens = [token for file in job["text"] for token in tokenizer(Path(file).read_text())["input_ids"]]
    runs = [tokens[i : i + SEQUENCE] for i in range(0, len(tokens) - SEQUENCE, SEQUENCE)]
    mask = [False] + [True] * (SEQUENCE - 1)
    for i in range(0, len(runs) - job["sequences"] + 1, job["sequences"]):
        chosen = [{"tokens": run, "loss_mask": mask} for run in runs[i : i + job["sequences"]]]
        batch = PackedBatch.pack(chosen)
        batch = batch.with_counts(tokens=float(batch["loss_mask"].sum()), sequences=float(len(chosen)))
        yield batch.with_fields(loss_weight=loss_weights(batch, "token-mean"))


if __name__ == "__main__":
    torch.manual_seed(1)
    main(json.loads(sys.argv[1]))
