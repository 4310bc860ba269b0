"""Training on data that are there: the loop of SFT, reward models and DPO, which differ in data and loss.

Read, train, journal, checkpoints, the held-out data before and after, save, report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from areal_mega.config.options import DataSetOptions, SupervisedOptions
from areal_mega.data import PackedBatch
from areal_mega.data.jsonl import endless_batches
from areal_mega.data.mixing import mixed, training_sets, validation_set
from areal_mega.policy.gpt import Head
from areal_mega.policy.model import LossFunction, MegatronModel
from areal_mega.runtime.distributed import Topology
from areal_mega.telemetry.journal import Journal
from areal_mega.telemetry.progress import ProgressDisplay
from areal_mega.telemetry.timers import PhaseTimers
from areal_mega.trainers import report
from areal_mega.trainers.experience import Share, share_of
from areal_mega.trainers.recovery import Recovery


def _as_it_is(share: Share) -> Share:
    return share


@dataclass(frozen=True)
class Task:
    """What is learned.

    name: of its metrics, before the slash. read: the items of a data set, from the option that names it and the options
    of the set. pack: a list of items as a batch. head, loss: of the model. prepare: adds to a replica's share what the
    loss needs. held_out: statistics of the loss that the summary shows, before and after.
    """

    name: str
    read: Callable[[str, DataSetOptions], list]
    pack: Callable[[Sequence], PackedBatch]
    head: Head
    loss: LossFunction
    held_out: tuple[str, ...]
    columns: Sequence[report.Column]
    panels: Sequence[tuple[str, Sequence[str]]]
    prepare: Callable[[Share], Share] = _as_it_is


class SupervisedTrainer:
    """One run."""

    def __init__(self, options: SupervisedOptions, topology: Topology, directory: Path, task: Task) -> None:
        """Read the data, find the checkpoint to go on from, build the model.

        Raises:
            UserError: the data, the model or the checkpoint cannot be used.
        """
        self.options, self.topology, self.directory, self.task = options, topology, directory, task
        assert options.steps is not None
        self.steps: int = options.steps
        sets = training_sets(options.data)
        self.items = mixed([task.read(name, how) for name, how in sets], [how.weight for _, how in sets])
        validation = options.data.validation
        self.held_out = task.read("data.validation", validation_set(options.data)) if validation else []
        self.recovery = Recovery(options, topology, directory, {"policy": options.model.path})
        self.policy = MegatronModel(
            topology,
            options.model.path,
            options.policy,
            dtype=options.model.dtype,
            optimizer=options.policy.optimizer,
            head=task.head,
            total_steps=self.steps,
            seed=options.seed,
            load_weights=self.recovery.point is None,
        )
        self.recovery.restore({"policy": self.policy})
        resume_step = self.recovery.step if self.recovery.point else None
        self.journal = Journal(directory, options.telemetry.tensorboard, resume_step) if topology.is_main else None
        self.display = ProgressDisplay(
            options.experiment,
            self.steps,
            list(task.columns),
            enabled=topology.is_main,
            live=options.telemetry.progress,
        )
        self.timers = PhaseTimers()

    def run(self, started: float, facts: dict[str, Any] | None = None) -> None:
        """Train, save, report. started: `time.perf_counter` when the run began. facts: for the summary."""
        o, recovery = self.options, self.recovery
        progress = recovery.progress
        position, earlier = progress.get("position", 0), progress.get("seconds_total", 0.0)
        before = progress["before"] if "before" in progress else self.measure()
        batches = endless_batches(self.items, o.items_per_step, o.data.shuffle, o.seed, position)
        with self.display:
            if recovery.point:
                self.display.say(f"resumed after step {recovery.step} from {recovery.point}")
            for step in range(recovery.step + 1, self.steps + 1):
                self.step(step, self.task.pack(next(batches)))
                position += o.items_per_step
                seconds = earlier + time.perf_counter() - started
                progress = {"before": before, "position": position, "seconds_total": seconds}
                recovery.after_step(step, {"policy": self.policy}, progress)
        recovery.finish()
        after = self.measure()
        if o.save:
            self.policy.save(self.directory / "model")
        self.finish(before, after, earlier + time.perf_counter() - started, facts or {})

    def step(self, step: int, batch: PackedBatch) -> None:
        """One optimizer step on the whole batch, of which this replica has a share."""
        with self.timers.phase("train"):
            share = self.share(batch, seed=step)
            result = self.policy.train_step(share.mini_batch(0, "token-mean"), self.task.loss)
        if self.journal:
            metrics = {f"{self.task.name}/{k}": v for k, v in result.items()} | self.timers.pop()
            metrics[f"{self.task.name}/tokens_per_second"] = batch.num_tokens / metrics["time/step"]
            self.journal.write(step, metrics)
            self.display.step(step, metrics)

    def measure(self) -> dict[str, float]:
        """The loss of all held-out items, and its statistics; empty without any."""
        if not self.held_out:
            return {}
        batch = self.share(self.task.pack(self.held_out), seed=0).mini_batch(0, "token-mean")
        loss, statistics = self.task.loss(batch, self.policy.forward(batch))
        statistics = {"loss": loss, **statistics}
        sums = self.topology.sum_over_dp(torch.stack([x.double() for x in statistics.values()]))
        return dict(zip(statistics, sums.tolist(), strict=True))

    def share(self, batch: PackedBatch, seed: int) -> Share:
        """This replica's share with what the loss needs. With experts spread over ranks all replicas take part: one
        that has nothing computes something that counts nowhere."""
        t = self.topology
        share = share_of(batch, 1, t.dp_rank, t.dp, seed)
        if not share.sizes[0]:
            spare = batch.select(batch.units[0])
            spare = spare.with_fields(loss_mask=torch.zeros_like(spare["loss_mask"]))
            share = replace(share, batch=spare, sizes=[spare.num_sequences])
        return self.task.prepare(share)

    def finish(self, before: dict[str, float], after: dict[str, float], seconds: float, facts: dict[str, Any]) -> None:
        """Leave summary and plot in the run directory."""
        if self.journal is None:
            return
        self.journal.close()
        held_out = {
            f"held_out_{name}_{when}": found.get(name)
            for name in self.task.held_out
            for when, found in (("before", before), ("after", after))
        }
        summary = {
            "experiment": self.options.experiment,
            "seed": self.options.seed,
            "steps": self.steps,
            **facts,
            "loss": self.journal.rows[-1][f"{self.task.name}/loss"],
            **held_out,
            "seconds_total": round(seconds, 2),
            "model_path": str(self.directory / "model") if self.options.save else None,
        }
        title = self.options.experiment
        report.finish(
            self.options, self.directory, self.journal.rows, summary, self.display, panels=self.task.panels, title=title
        )
