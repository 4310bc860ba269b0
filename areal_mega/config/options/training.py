"""Options of the training programs."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from areal_mega.config.options.algorithm import AlgorithmOptions
from areal_mega.config.options.data import DataOptions
from areal_mega.config.options.fields import group, option
from areal_mega.config.options.policy import CriticOptions, ModelOptions, PolicyOptions
from areal_mega.config.options.reward import RewardOptions
from areal_mega.config.options.rollout import ReshardingOptions, RolloutOptions
from areal_mega.config.options.run import CheckpointOptions, EvaluationOptions, RuntimeOptions, TelemetryOptions


@dataclass
class CommonOptions:
    experiment: str = option(MISSING, "Name of the recipe; set by +experiment=NAME.")
    description: str = option("", "One line about the recipe, shown by --list.")
    seed: int = option(1, "Seed of data order, sampling and initialisation.")
    output: str = option("outputs", "Folder in which run directories are made.")
    run_name: str | None = option(None, "Name of the run directory; null: experiment and time.")
    resume: str | None = option(
        None,
        "Go on with a run that ended early, in its own directory. latest: run_name, or the run started last. A path: "
        "a run directory or one of its checkpoints. null: a new run.",
    )
    save: bool = option(True, "Save the trained model in Hugging Face format.")
    dry_run: bool = option(
        False, "Check the options, print what policy.parallel.ranks would hold and send, and leave (docs/recipes.md)."
    )
    stand_ins: str | None = option(
        None,
        "Folder of stand-ins, which take the place of the model and all data sets: a tiny random model of the same "
        "family, sums in the same formats (+scale=smoke). null: none.",
    )
    checkpoint: CheckpointOptions = group(CheckpointOptions, "Checkpoints to resume from.")
    model: ModelOptions = group(ModelOptions, "The model.")
    policy: PolicyOptions = group(PolicyOptions, "Megatron: layout, optimizer, token budget.")
    data: DataOptions = group(DataOptions, "Data sets.")
    runtime: RuntimeOptions = group(RuntimeOptions, "Device, threads, time limits.")
    telemetry: TelemetryOptions = group(TelemetryOptions, "What the run shows and writes.")


@dataclass
class PPOOptions(CommonOptions):
    """Options of tools/train_ppo.py."""

    program: str = option("ppo", "The program the recipe is for.", choices=("ppo",))
    steps: int = option(100, "Training steps: each is one batch of samples.", minimum=0)
    critic: CriticOptions = group(CriticOptions, "The critic (algorithm.advantage=gae).")
    rollout: RolloutOptions = group(RolloutOptions, "Generation with SGLang.")
    resharding: ReshardingOptions = group(ReshardingOptions, "New weights for the engines.")
    algorithm: AlgorithmOptions = group(AlgorithmOptions, "Advantages and losses.")
    reward: RewardOptions = group(RewardOptions, "How answers are judged.")
    evaluation: EvaluationOptions = group(EvaluationOptions, "Accuracy on held-out prompts.")

    @property
    def samples_per_step(self) -> int:
        """Samples of each training step."""
        return self.rollout.prompts_per_step * self.rollout.samples_per_prompt

    @property
    def staleness(self) -> int:
        """Versions a sample may be old when it is trained on (eta)."""
        return {"sync": 0, "one-step": 1, "async": self.rollout.max_staleness}[self.rollout.mode]

    @property
    def critic_updates(self) -> int:
        """Optimizer steps of the critic in the whole run."""
        return self.steps * self.algorithm.epochs * self.algorithm.mini_batches

    @property
    def policy_updates(self) -> int:
        """Optimizer steps of the policy in the whole run: it rests while the critic warms up."""
        return max(0, self.steps - self.critic.warmup_steps) * self.algorithm.epochs * self.algorithm.mini_batches


@dataclass
class SFTOptions(CommonOptions):
    """Options of tools/train_sft.py."""

    program: str = option("sft", "The program the recipe is for.", choices=("sft",))
    steps: int = option(100, "Optimizer steps.", minimum=1)
    sequences_per_step: int = option(64, "Sequences of each optimizer step, over all ranks.", minimum=1)
    max_tokens: int = option(2048, "Longest prompt plus answer; a longer one stops the run.", minimum=2)
