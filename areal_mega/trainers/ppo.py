"""PPO with a critic, and critic-free GRPO: the loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from areal_mega.algorithms.kl import kl_estimate
from areal_mega.algorithms.losses import ValueLoss, generated_tokens
from areal_mega.config.options import OptimizerOptions, PPOOptions
from areal_mega.data.tokenizer import check_same_tokens
from areal_mega.policy.gpt import Head
from areal_mega.policy.model import MegatronModel
from areal_mega.policy.spec import read_config
from areal_mega.resharding.deployment import Deployment
from areal_mega.rollout.collector import Batch
from areal_mega.runtime.distributed import Topology
from areal_mega.telemetry.journal import Journal
from areal_mega.telemetry.progress import ProgressDisplay
from areal_mega.telemetry.timers import PhaseTimers
from areal_mega.trainers import report
from areal_mega.trainers.best import BestModel
from areal_mega.trainers.exchange import exchange
from areal_mega.trainers.experience import (
    Share,
    adaptive_of,
    policy_loss_of,
    with_advantages,
    with_anchor,
)
from areal_mega.trainers.generation import Generation
from areal_mega.trainers.publishing import deployment_of, weight_sync
from areal_mega.trainers.recovery import Recovery
from areal_mega.trainers.report import Evaluation

T = TypeVar("T")


class PPOTrainer:
    """One run. All ranks train; rank 0 has a ``generation`` as well."""

    def __init__(
        self,
        options: PPOOptions,
        topology: Topology,
        directory: Path,
        generation: Generation | None,
        recovery: Recovery,
        deployment: Deployment,
    ) -> None:
        self.options, self.topology, self.directory = options, topology, directory
        self.generation, self.recovery, self.version = generation, recovery, 0
        self._beside = ThreadPoolExecutor(1, "generation")
        self.timers = PhaseTimers()
        resume_step = recovery.step if recovery.point else None
        self.journal = Journal(directory, options.telemetry.tensorboard, resume_step) if topology.is_main else None
        self.display = ProgressDisplay(
            options.experiment,
            options.steps,
            report.PPO_COLUMNS,
            enabled=topology.is_main,
            live=options.telemetry.progress,
        )
        self._build_models()
        self.best = BestModel(directory, topology) if options.evaluation.keep_best else None
        self.adaptive = adaptive_of(options.algorithm)
        self.value_loss = ValueLoss(options.algorithm.value_clip)
        engines = generation.engines if generation else ()
        self.weight_sync = weight_sync(options, topology, deployment, self.policy.held_weights, engines, directory)

    def _build_models(self) -> None:
        o, a = self.options, self.options.algorithm

        def model(path: str, head: Head, optimizer: OptimizerOptions | None = None, updates: int = 0) -> MegatronModel:
            return MegatronModel(
                self.topology,
                path,
                o.policy,
                dtype=o.model.dtype,
                optimizer=optimizer,
                head=head,
                temperature=o.rollout.temperature,
                total_steps=updates,
                seed=o.seed,
                load_weights=optimizer is None or self.recovery.point is None,
            )

        self.policy = model(o.model.path, "logprob", o.policy.optimizer, o.policy_updates)
        self.reference = model(a.reference_path or o.model.path, "logprob") if a.use_reference else None
        self.critic = None
        if a.has_critic:
            self.critic = model(o.critic.path or o.model.path, "value", o.critic.optimizer, o.critic_updates)

    def run(self, started: float) -> None:
        """Evaluate, train, save, evaluate, report: an engine that fails at the end does not cost the model.

        started: `time.perf_counter` when the run began.
        """
        steps, every = self.options.steps, self.options.evaluation.every
        with self.display:
            before, earlier = self.begin()
            rl_started = time.perf_counter()

            def seconds() -> dict[str, float]:
                now = time.perf_counter()
                spent = {"seconds_total": now - started, "seconds_rl": now - rl_started}
                return {k: v + earlier.get(k, 0.0) for k, v in spent.items()}

            for step in range(self.recovery.step + 1, steps + 1):
                self.step(step)
                if every and step % every == 0 and step < steps:
                    self.keep_if_best(step, self.evaluate(step))
                with self.timers.phase("checkpoint") if self.options.checkpoint.every else nullcontext():
                    progress = {"before": asdict(before), **self.progress, **seconds()}
                    progress["adaptive"] = self.adaptive.state()
                    self.recovery.after_step(step, self.trained, progress)
            rl_seconds = seconds()["seconds_rl"]
            self.recovery.finish()
            if self.options.save:
                self.policy.save(self.directory / "model")
            after = self.evaluate(steps)
            self.keep_if_best(steps, after)
        self.finish(before, after, seconds()["seconds_total"], rl_seconds)

    def begin(self) -> tuple[Evaluation, dict[str, float]]:
        """The evaluation before training and the seconds spent so far; the models and the engine where they were."""
        recovery, progress = self.recovery, self.recovery.progress
        recovery.restore(self.trained)
        if recovery.point:
            self.adaptive.restore(progress.get("adaptive", {}))
            if self.generation:
                self.generation.seek(progress.get("position", 0), progress.get("pending", []))
            self.publish(recovery.step)
            self.display.say(f"resumed after step {recovery.step} from {recovery.point}")
        if "before" in progress:
            return Evaluation(**progress["before"]), progress
        before = self.evaluate(0)
        self.display.say(f"accuracy before training: {report.percent(before)}")
        return before, progress

    @property
    def trained(self) -> dict[str, MegatronModel]:
        """The models that a checkpoint holds, by name."""
        return {"policy": self.policy, **({"critic": self.critic} if self.critic else {})}

    @property
    def progress(self) -> dict[str, Any]:
        """Where in the order of the prompts the run is; the main rank knows."""
        return self.generation.progress if self.generation else {}

    def step(self, step: int) -> None:
        """Generate, score, train, publish: afterwards the engine has the new weights."""
        with self.timers.phase("rollout"):
            drawn = self.generate(Generation.next_batch)
        with self.timers.phase("exchange"):
            samples = drawn.samples if drawn else None
            share, balance = exchange(samples, self.options, self.topology, self.policy.hf, step)
        with self.timers.phase("score"):
            share, metrics = self.score(share, step)
        with self.timers.phase("train"):
            metrics |= self.update(share, step)
        with self.timers.phase("sync"):
            self.publish(step)
        self.report(step, drawn, metrics | balance)

    def score(self, share: Share, step: int) -> tuple[Share, dict[str, float]]:
        """This replica's share with log-probs, values and advantages; and their metrics."""
        t, a = self.topology, self.options.algorithm
        if a.proximal == "recomputed":
            share = share.with_fields(proximal_logprobs=self.policy.forward(share.batch)["logprobs"])
        else:
            share = replace(share, batch=with_anchor(share.batch, a.proximal, version=step - 1))
        if self.reference:
            share = share.with_fields(reference_logprobs=self.reference.forward(share.batch)["logprobs"])
        if self.critic:
            share = share.with_fields(values=self.critic.forward(share.batch)["values"])
        share = replace(share, batch=with_advantages(share.batch, a, self.adaptive, t.sum_over_dp))
        metrics = self._score_metrics(share, version=step - 1)
        if self.reference and step > self.options.critic.warmup_steps:  # until then the policy cannot move
            self.adaptive.kl.update(metrics["policy/response_kl"], self.options.samples_per_step)
        return share, metrics

    def update(self, share: Share, step: int) -> dict[str, float]:
        """All optimizer steps on the share; the mean of their statistics."""
        a = self.options.algorithm
        policy_loss = policy_loss_of(a, self.adaptive.kl.coef)
        collected: list[dict[str, float]] = []
        for _ in range(a.epochs):
            for index in range(a.mini_batches):
                batch = share.mini_batch(index, a.aggregation, a.aggregation_length)
                stats: dict[str, float] = {}
                if self.critic:
                    result = self.critic.train_step(batch, self.value_loss)
                    stats |= {f"critic/{k}": v for k, v in result.items()}
                if step > self.options.critic.warmup_steps:
                    result = self.policy.train_step(batch, policy_loss)
                    stats |= {f"policy/{k}": v for k, v in result.items()}
                collected.append(stats)
        return {k: sum(s[k] for s in collected) / len(collected) for k in collected[0]}

    def publish(self, version: int) -> None:
        """The policy's weights go into the engines as ``version``; all ranks take part."""
        self.version = version
        self.policy.settle()
        if self.generation:
            self.generation.publish(version, self._send)
        else:
            self._send()

    def generate(self, work: Callable[[Generation], T]) -> T | None:
        """What the main rank makes with its engines, while the other ranks wait.

        It may need an engine that died and was started again, and that needs weights from all ranks: so until it is
        done they are ready to send them. The policy still has those that the other engines have.
        """
        generation = self.generation
        if generation is None:
            while self.topology.broadcast(None):
                self._send()
            return None
        answer = self._beside.submit(work, generation)
        while self.topology.broadcast(engines := generation.until_done(answer)):
            generation.readmit(engines, self._send)
        return answer.result()

    def _send(self, engines: Sequence[int] = ()) -> dict[int, str]:
        """engines: on the main rank. Returns those that failed, and why."""
        return self.weight_sync.send(self.version, engines).failures

    def evaluate(self, step: int) -> Evaluation:
        """The held-out prompts' accuracy and some answers, on the main rank; the journal gets the accuracy.

        All ranks take part.
        """
        samples = self.generate(Generation.evaluate)
        if self.journal is None or not samples:
            return Evaluation()
        evaluation = report.evaluation_of(samples, self.options.evaluation.show)
        self.journal.write(step, report.evaluation_metrics(evaluation))
        return evaluation

    def keep_if_best(self, step: int, evaluation: Evaluation) -> None:
        """With evaluation.keep_best; all ranks take part."""
        if self.best:
            self.best.offer(self.policy, step, evaluation.accuracy)

    def _score_metrics(self, share: Share, version: int) -> dict[str, float]:
        """Over all tokens of all replicas: train/engine mismatch, tokens that M2PO left out, KL to the reference.

        Mismatch is the difference of log-probs of the same weights, ``version``; on the tokens of older ones the
        difference is ``staleness/gap``. Both are known where the trainer computed its own.
        """
        batch, a = share.batch, self.options.algorithm
        mask = batch["loss_mask"]
        everywhere = torch.ones_like(batch["versions"][mask], dtype=torch.bool)
        fresh = batch["versions"][mask] == version
        difference = (batch["proximal_logprobs"] - batch["behavior_logprobs"])[mask].double().abs()
        means: dict[str, tuple[Tensor, Tensor]] = {}
        if a.proximal == "recomputed":
            means |= {"mismatch/mean": (difference, fresh), "staleness/gap": (difference, ~fresh)}
        if a.m2_threshold is not None:
            means["policy/m2_masked"] = (~batch["trusted"][mask], everywhere)
        if self.reference:
            x, y = batch["proximal_logprobs"], batch["reference_logprobs"]
            means["policy/reference_kl"] = (kl_estimate(x, y, "k3")[mask], everywhere)
            means["policy/response_kl"] = (kl_estimate(x, y, "k1")[mask], everywhere)
        sums = [x.double()[where].sum() for x, where in means.values()]
        counts = [where.double().sum() for _, where in means.values()]
        responses = (generated_tokens(batch) > 0).double().sum()
        totals = self.topology.sum_over_dp(torch.stack([responses, *sums, *counts])).tolist()
        pairs = zip(means, totals[1 : 1 + len(means)], totals[1 + len(means) :], strict=True)
        metrics = {name: total / count for name, total, count in pairs if count}
        if self.reference:  # of a whole response, not of a token
            metrics["policy/response_kl"] = totals[1 + list(means).index("policy/response_kl")] / max(totals[0], 1)
        if a.kl_target is not None:
            metrics["policy/kl_coef"] = self.adaptive.kl.coef
        if "mismatch/mean" in metrics:
            metrics["mismatch/max"] = self._largest(difference[fresh])
        return metrics

    def _largest(self, x: Tensor) -> float:
        return float(self.topology.max_over_dp(x.max() if x.numel() else torch.zeros(()).double()))

    def report(self, step: int, drawn: Batch | None, metrics: dict[str, float]) -> None:
        """Show and write the step's metrics."""
        if self.journal is None or drawn is None:
            return
        metrics |= self.timers.pop()
        metrics |= drawn.metrics | report.sample_metrics(drawn.samples, metrics["time/step"])
        self.journal.write(step, metrics)
        self.display.step(step, metrics)

    def finish(self, before: Evaluation, after: Evaluation, seconds: float, rl_seconds: float) -> None:
        """Leave summary, plot and sampled answers in the run directory."""
        if self.journal is None:
            return
        self.journal.close()
        report.finish_ppo(
            self.options,
            self.directory,
            self.journal.rows,
            before,
            after,
            model_path=self.directory / "model" if self.options.save else None,
            seconds_total=seconds,
            seconds_rl=rl_seconds,
            display=self.display,
        )


def run(options: PPOOptions, topology: Topology, directory: Path) -> None:
    """A whole run; the engine is stopped however it ends.

    Raises:
        UserError: a model folder, a data set or an option cannot be used.
    """
    started = time.perf_counter()
    read_config(options.model.path)
    if options.critic.path:
        read_config(options.critic.path)
    if options.algorithm.reference_path:
        read_config(options.algorithm.reference_path)
        check_same_tokens(options.model.path, "algorithm.reference_path", options.algorithm.reference_path)
    models = {"policy": options.model.path}
    if options.algorithm.has_critic:
        models["critic"] = options.critic.path or options.model.path
    recovery = Recovery(options, topology, directory, models)
    deployment = deployment_of(options, topology)

    def generate() -> Generation:
        return Generation(options, topology.device.type, directory, deployment)

    with closing(generate()) if topology.is_main else nullcontext() as generation:
        topology.barrier()  # reading the data may take long
        PPOTrainer(options, topology, directory, generation, recovery, deployment).run(started)
