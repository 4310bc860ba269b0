"""Options of tools/evaluate.py."""

from __future__ import annotations

from dataclasses import dataclass

from areal_mega.config.options.data import DATA_FORMATS, PROMPT_TYPES
from areal_mega.config.options.fields import group, option
from areal_mega.config.options.policy import ModelOptions
from areal_mega.config.options.reward import VERIFIER_NAMES, RewardOptions
from areal_mega.config.options.rollout import RolloutOptions
from areal_mega.config.options.run import RuntimeOptions


@dataclass
class EvaluationDataOptions:
    folder: str = option("data", "Folder where the files of benchmarks are looked for first; then the Hub is asked.")
    format: str = option("auto", "As in training, for files that are no known benchmark.", choices=DATA_FORMATS)
    prompt_type: str | None = option(
        None, "How a question becomes a prompt (docs/data.md); null: as each benchmark has it.", choices=PROMPT_TYPES
    )
    problems: int | None = option(
        None, "Problems of each benchmark, from its beginning; null: all, 100 of those that are made.", minimum=1
    )
    unusable: str = option(
        "stop",
        "What to do with a line that is too long or whose own answer gets no full reward; skip counts and says so.",
        choices=("stop", "skip"),
    )


@dataclass
class EvaluationRolloutOptions(RolloutOptions):
    """As in training, with other defaults."""

    prompts_per_step: int = option(64, "Problems under way at the same time, and kept together.", minimum=1)
    samples_per_prompt: int = option(8, "Answers to each problem: n.", minimum=1)
    max_prompt_tokens: int = option(2048, "Longest prompt.", minimum=1)
    max_new_tokens: int = option(32768, "Longest answer.", minimum=1)
    temperature: float = option(0.6, "Sampling temperature; 0 is greedy.", minimum=0)
    top_p: float = option(0.95, "Nucleus sampling; 1: off.", above=0, maximum=1)
    top_k: int = option(-1, "Top-k sampling; -1: off.")


@dataclass
class EvaluationRewardOptions(RewardOptions):
    """As in training, where only the verifiers matter here, and what they need."""

    name: str = option(
        "task",
        f"Verifier of files that are no known benchmark: {', '.join(VERIFIER_NAMES)}, your own as "
        "package.module:function, or task: the one the problem's task names.",
    )


@dataclass
class EvaluateOptions:
    """Options of tools/evaluate.py."""

    benchmarks: list[str] = option(
        [], "What to evaluate: names (--list), reasoning-gym:TASK, or files in any of the formats of docs/data.md."
    )
    output: str | None = option(
        None, "Folder of answers and results, where an evaluation goes on; null: outputs/evaluation/MODEL."
    )
    pass_at: list[int] | None = option(None, "The k of pass@k and majority@k; null: 1, 2, 4, ... and n.")
    confidence: float = option(0.95, "Of the interval around pass@1.", above=0, below=1)
    seed: int = option(1, "Seed of sampling, and of problems that are made.")
    model: ModelOptions = group(ModelOptions, "The model.")
    data: EvaluationDataOptions = group(EvaluationDataOptions, "Problems.")
    rollout: EvaluationRolloutOptions = group(EvaluationRolloutOptions, "Generation with SGLang.")
    reward: EvaluationRewardOptions = group(EvaluationRewardOptions, "How answers are judged.")
    runtime: RuntimeOptions = group(RuntimeOptions, "Device.")
