"""Data sets, their formats, mixing and stages."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from areal_mega.config.options.fields import option

DATA_FORMATS = (
    "auto", "ours", "boba", "boba-sft", "gsm8k", "math", "deepscaler", "dapo", "orz", "reasoning-gym", "humaneval",
    "gpqa",
)  # fmt: skip
PROMPT_TYPES = (
    "chat", "plain", "boxed", "AReaL-boba", "AReaL-boba-SFT", "r1-distilled-qwen", "r1-distilled-qwen-gpqa",
    "deepscaler", "orz", "r1-zero", "r1-zero-box", "qwq", "qwq-math", "qwen-boxed", "qwen25-math-cot",
)  # fmt: skip


@dataclass
class CurriculumStageOptions:
    """A stretch of the run (data.curriculum)."""

    prompts: int | None = option(None, "How many prompts the stage lasts; null, for the last: to the end.", minimum=1)
    min_difficulty: float | None = option(None, "Only prompts with at least this metadata.difficulty.")
    max_difficulty: float | None = option(None, "Only prompts with at most this metadata.difficulty.")
    max_new_tokens: int | None = option(None, "Longest response; null: rollout.max_new_tokens.", minimum=1)


@dataclass
class DataSetOptions:
    """One of several training sets (data.mix)."""

    path: str = option(MISSING, "As data.train.")
    weight: float = option(1.0, "Prompts of this set for each prompt of data.train with weight 1.", above=0)
    format: str = option("auto", "As data.format.", choices=DATA_FORMATS)
    prompt_type: str | None = option(None, "As data.prompt_type.", choices=PROMPT_TYPES)
    task: str | None = option(None, "As data.task.")


@dataclass
class DataOptions:
    train: str = option(
        MISSING,
        "Training prompts: a .jsonl, .json or .parquet file, a folder of them, a folder that `datasets` saved, or "
        "hf://datasets/OWNER/NAME[@REVISION]/FILE.",
    )
    validation: str | None = option(None, "Held-out prompts, as data.train; null: no evaluation.")
    shuffle: bool = option(True, "Shuffle the training prompts anew for each pass.")
    format: str = option("auto", "What a line looks like (docs/data.md); auto: its fields say.", choices=DATA_FORMATS)
    prompt_type: str | None = option(
        None,
        "How a question becomes a prompt (docs/data.md); null: the model's chat template, and prompts that are "
        "templated already stay as they are.",
        choices=PROMPT_TYPES,
    )
    task: str | None = option(None, "Task of every line, which reward.name=task judges by; null: the line's own.")
    unusable: str = option(
        "stop",
        "What to do with a line that is too long or whose own answer gets no full reward; skip counts and says so.",
        choices=("stop", "skip"),
    )
    weight: float = option(1.0, "Weight of data.train beside data.mix.", above=0)
    curriculum: list[CurriculumStageOptions] = option(
        [], "Stages by difficulty and length, [{prompts: 6400, max_difficulty: 2, max_new_tokens: 256}, {}]."
    )
    mix: list[DataSetOptions] = option([], "More training sets, [{path: FILE, weight: 0.5, ...}] (docs/data.md).")
