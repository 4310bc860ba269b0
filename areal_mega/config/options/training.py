"""Options of the training programs."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from areal_mega.config.options.algorithm import AlgorithmOptions
from areal_mega.config.options.data import DataOptions
from areal_mega.config.options.evaluate import EvaluationRewardOptions, EvaluationRolloutOptions
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

    @property
    def items_per_step(self) -> int:
        """What a step takes of the data."""
        return self.sequences_per_step

    @property
    def longest_item(self) -> int:
        """Tokens of what goes through the model at once, at most."""
        return self.max_tokens


@dataclass
class PreferenceOptions(CommonOptions):
    """What programs that learn from preference pairs have in common."""

    steps: int = option(100, "Optimizer steps.", minimum=1)
    pairs_per_step: int = option(64, "Preference pairs of each optimizer step, over all ranks.", minimum=1)
    max_tokens: int = option(2048, "Longest prompt plus answer; a longer one stops the run.", minimum=2)

    @property
    def items_per_step(self) -> int:
        """What a step takes of the data."""
        return self.pairs_per_step

    @property
    def longest_item(self) -> int:
        """Tokens of what goes through the model at once, at most: both answers of a pair, with a token behind each."""
        return 2 * (self.max_tokens + 1)


@dataclass
class DPOOptions(PreferenceOptions):
    """Options of tools/train_dpo.py."""

    program: str = option("dpo", "The program the recipe is for.", choices=("dpo",))
    loss: str = option(
        "sigmoid",
        "sigmoid: DPO. ipo: squared difference of the lead to 1 / (2 beta). nca_pair: NCA, which also raises "
        "the chosen answer's own probability.",
        choices=("sigmoid", "ipo", "nca_pair"),
    )
    beta: float = option(0.1, "beta: what a log-ratio to the reference counts; ipo: tau.", above=0)
    label_smoothing: float = option(
        0.0, "sigmoid: probability that a pair is the wrong way round (conservative DPO).", minimum=0, below=0.5
    )
    average_logprobs: bool | None = option(
        None, "Log-prob of an answer: the mean of its tokens', not the sum; null: with ipo."
    )
    reference_path: str | None = option(
        None, "Hugging Face folder of the reference model; null: model.path, the model as the run begins."
    )

    @property
    def averages(self) -> bool:
        """What average_logprobs means."""
        return self.loss == "ipo" if self.average_logprobs is None else self.average_logprobs


@dataclass
class RewardModelOptions(PreferenceOptions):
    """Options of tools/train_reward.py."""

    program: str = option("reward", "The program the recipe is for.", choices=("reward",))
    use_margin: bool = option(
        False, "Ask for a lead of at least the pair's own margin (Llama 2), which every pair must have."
    )
    center_coef: float = option(0.0, "Weight of (r_chosen + r_rejected)^2, which keeps rewards around 0.", minimum=0)


@dataclass
class KeepOptions:
    answers: int = option(1, "Right answers to each prompt that are kept, at most.", minimum=1)
    choose: str = option(
        "random",
        "Which, where there are more: the shortest, the first in random order, or all (answers does not count).",
        choices=("shortest", "random", "all"),
    )
    max_success: float = option(
        1.0,
        "Leave out prompts of which a larger part of the answers is right: there is little to learn.",
        above=0,
        maximum=1,
    )


@dataclass
class RejectionOptions(CommonOptions):
    """Options of tools/rejection_sample.py."""

    program: str = option("rejection", "The program the recipe is for.", choices=("rejection",))
    steps: int | None = option(None, "Optimizer steps; null: as many as epochs take.", minimum=1)
    epochs: int = option(1, "Passes over the kept answers.", minimum=1)
    sequences_per_step: int = option(64, "Sequences of each optimizer step, over all ranks.", minimum=1)
    rollout: EvaluationRolloutOptions = group(EvaluationRolloutOptions, "Generation with SGLang.")
    reward: EvaluationRewardOptions = group(EvaluationRewardOptions, "Which answers are right.")
    keep: KeepOptions = group(KeepOptions, "Which right answers are trained on.")

    @property
    def max_tokens(self) -> int:
        """Longest sequence: what was generated, and its end."""
        return self.rollout.max_prompt_tokens + self.rollout.max_new_tokens + 1

    @property
    def items_per_step(self) -> int:
        """What a step takes of the data."""
        return self.sequences_per_step

    @property
    def longest_item(self) -> int:
        """Tokens of what goes through the model at once, at most."""
        return self.max_tokens


SupervisedOptions = SFTOptions | DPOOptions | RewardModelOptions | RejectionOptions
