"""Supervised fine-tuning: the same policy and packing, loss on the answers only."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from areal_mega.algorithms.losses import sft_loss
from areal_mega.config.options import DataSetOptions, SFTOptions
from areal_mega.data import PackedBatch
from areal_mega.data.jsonl import endless_batches, read_answers
from areal_mega.data.mixing import mixed, training_sets, validation_set
from areal_mega.data.tokenizer import load_tokenizer
from areal_mega.policy.model import MegatronModel
from areal_mega.policy.spec import read_config
from areal_mega.runtime.distributed import Topology
from areal_mega.telemetry.journal import Journal
from areal_mega.telemetry.progress import ProgressDisplay
from areal_mega.telemetry.timers import PhaseTimers
from areal_mega.trainers import report
from areal_mega.trainers.experience import share_of
from areal_mega.trainers.recovery import Recovery


def run(options: SFTOptions, topology: Topology, directory: Path) -> None:
    """A whole run: read, train, save, report."""
    started = time.perf_counter()
    read_config(options.model.path)
    tokenizer = load_tokenizer(options.model.path)
    skip = options.data.unusable == "skip"

    def read(name: str, how: DataSetOptions) -> list[dict[str, list]]:
        return read_answers(how.path, name, tokenizer, options.max_tokens, how, skip)

    sets = training_sets(options.data)
    sequences = mixed([read(name, how) for name, how in sets], [how.weight for _, how in sets])
    held_out = read("data.validation", validation_set(options.data)) if options.data.validation else []
    recovery = Recovery(options, topology, directory, {"policy": options.model.path})
    position = recovery.progress.get("position", 0)
    batches = endless_batches(sequences, options.sequences_per_step, options.data.shuffle, options.seed, position)
    policy = MegatronModel(
        topology,
        options.model.path,
        options.policy,
        dtype=options.model.dtype,
        optimizer=options.policy.optimizer,
        head="logprob",
        total_steps=options.steps,
        seed=options.seed,
        load_weights=recovery.point is None,
    )
    recovery.restore({"policy": policy})
    resume_step = recovery.step if recovery.point else None
    journal = Journal(directory, options.telemetry.tensorboard, resume_step) if topology.is_main else None
    timers = PhaseTimers()
    display = ProgressDisplay(
        options.experiment,
        options.steps,
        report.SFT_COLUMNS,
        enabled=topology.is_main,
        live=options.telemetry.progress,
    )
    progress = recovery.progress
    before = progress["before"] if "before" in progress else held_out_loss(policy, held_out, topology)
    earlier = progress.get("seconds_total", 0.0)
    with display:
        if recovery.point:
            display.say(f"resumed after step {recovery.step} from {recovery.point}")
        for step in range(recovery.step + 1, options.steps + 1):
            with timers.phase("train"):
                batch = PackedBatch.pack(next(batches))
                share = share_of(batch, 1, topology.dp_rank, topology.dp, seed=step)
                result = policy.train_step(share.mini_batch(0, "token-mean"), sft_loss)
            if journal:
                metrics = {f"sft/{k}": v for k, v in result.items()} | timers.pop()
                metrics["sft/tokens_per_second"] = batch.num_tokens / metrics["time/step"]
                journal.write(step, metrics)
                display.step(step, metrics)
            position += options.sequences_per_step
            seconds = earlier + time.perf_counter() - started
            progress = {"before": before, "position": position, "seconds_total": seconds}
            recovery.after_step(step, {"policy": policy}, progress)
    recovery.finish()
    after = held_out_loss(policy, held_out, topology)
    if options.save:
        policy.save(directory / "model")
    if journal is None:
        return
    journal.close()
    summary = {
        "experiment": options.experiment,
        "seed": options.seed,
        "steps": options.steps,
        "loss": journal.rows[-1]["sft/loss"],
        "held_out_loss_before": before,
        "held_out_loss_after": after,
        "seconds_total": round(earlier + time.perf_counter() - started, 2),
        "model_path": str(directory / "model") if options.save else None,
    }
    report.finish(
        options, directory, journal.rows, summary, display, panels=report.SFT_PANELS, title=options.experiment
    )


def held_out_loss(policy: MegatronModel, sequences: list[dict[str, list]], topology: Topology) -> float | None:
    """Mean negative log-likelihood of the answer tokens of all sequences; None without sequences."""
    if not sequences:
        return None
    sums = torch.zeros(2, dtype=torch.float64)
    mine = sequences[topology.dp_rank :: topology.dp]
    batch = PackedBatch.pack(mine or sequences[:1])  # with experts spread over ranks all of them take part
    logprobs = policy.forward(batch)["logprobs"]
    if mine:
        sums = torch.stack([-logprobs.double().sum(), batch["loss_mask"].double().sum()])
    total, tokens = topology.sum_over_dp(sums).tolist()
    return total / tokens
