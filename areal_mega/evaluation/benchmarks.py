"""The benchmarks, by name: where their problems come from, how they are asked and who judges the answers.

To add one, write its line in `BENCHMARKS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from areal_mega.config.errors import UserError
from areal_mega.config.options import DataSetOptions, EvaluateOptions, RewardOptions
from areal_mega.data import Prompt
from areal_mega.data.jsonl import read_prompts, write_lines
from areal_mega.data.records import HUB
from areal_mega.rewards import check_answers
from areal_mega.rewards.answers import final_answer
from areal_mega.rewards.choice import picked
from areal_mega.rewards.registry import TASKS

PROCEDURAL = "reasoning-gym:"
MADE_PROBLEMS = 100
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Benchmark:
    """hub: file on the Hugging Face Hub. file: its name, without suffix, in data.folder. chat: the prompt type."""

    hub: str
    file: str
    format: str
    verifier: str
    prompt_type: str | None = "boxed"


BENCHMARKS: dict[str, Benchmark] = {
    "aime24": Benchmark("HuggingFaceH4/aime_2024/data/train-00000-of-00001.parquet", "aime24", "math", "math"),
    "aime25": Benchmark("math-ai/aime25/test.jsonl", "aime25", "math", "math"),
    "amc23": Benchmark("math-ai/amc23/test-00000-of-00001.parquet", "amc23", "gsm8k", "math"),
    "math-500": Benchmark("HuggingFaceH4/MATH-500/test.jsonl", "math_500", "math", "math"),
    "gsm8k": Benchmark("openai/gsm8k/main/test-00000-of-00001.parquet", "gsm8k_test", "gsm8k", "math"),
    # Needs the user's consent on the Hub and its token; its text must not be published.
    "gpqa-diamond": Benchmark("Idavidrein/gpqa/gpqa_diamond.csv", "gpqa_diamond", "gpqa", "choice"),
    "humaneval": Benchmark(
        "openai/openai_humaneval/openai_humaneval/test-00000-of-00001.parquet", "humaneval", "humaneval", "code", None
    ),
}


@dataclass(frozen=True)
class Problems:
    """A benchmark that was read. reward: names its verifier."""

    name: str
    prompts: list[Prompt]
    reward: RewardOptions


def read_problems(name: str, options: EvaluateOptions, tokenizer: Any, output: Path) -> Problems:
    """The problems of a benchmark whose own answers get full score. output: where problems that are made are kept.

    Raises:
        UserError: there is no such benchmark or file, or it cannot be read; an answer of its own gets no full score.
    """
    data = options.data
    path, how, verifier = _source(name, options, output)
    how = replace(how, prompt_type=data.prompt_type or how.prompt_type)
    if tokenizer.chat_template is None and how.prompt_type == "boxed":
        raise UserError(
            f"{name} is asked in a chat, but the model's tokenizer has no chat template; set data.prompt_type, such as "
            "data.prompt_type=plain."
        )
    skip = data.unusable == "skip"
    reward = replace(options.reward, name=verifier)
    prompts = read_prompts(path, name, tokenizer, options.rollout.max_prompt_tokens, how, skip)[: data.problems]
    return Problems(name, check_answers(prompts, reward, name, skip), reward)


def vote(response: str, prompt: Prompt, verifier: str) -> str | None:
    """What a response says, for a majority; None where it says nothing or its kind of answer has no majority."""
    name = TASKS.get(prompt.task, prompt.task) if verifier == "task" else verifier
    said = _SAID[name](response, prompt) if name in _SAID else None
    return " ".join(said.split()) or None if said else None


def _source(name: str, options: EvaluateOptions, output: Path) -> tuple[str, DataSetOptions, str]:
    """The file of a benchmark, how to read it, and its verifier."""
    if name.startswith(PROCEDURAL):
        path = _made(name.removeprefix(PROCEDURAL), options, output)
        return path, DataSetOptions(path, format="reasoning-gym"), "reasoning_gym"
    if (known := BENCHMARKS.get(name)) is None:
        if not Path(name).exists() and not name.startswith(HUB):
            raise UserError(
                f"benchmarks names {name}, which is neither a file nor one of {', '.join(BENCHMARKS)}, "
                f"{PROCEDURAL}TASK."
            )
        return name, DataSetOptions(name, format=options.data.format), options.reward.name
    here = (Path(options.data.folder) / f"{known.file}{suffix}" for suffix in SUFFIXES)
    path = next((str(file) for file in here if file.is_file()), HUB + known.hub)
    return path, DataSetOptions(path, format=known.format, prompt_type=known.prompt_type), known.verifier


def _made(task: str, options: EvaluateOptions, output: Path) -> str:
    """A file with problems of a reasoning-gym task, the same ones for the same seed."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if task not in DATASETS:
        raise UserError(f"{PROCEDURAL}{task}: reasoning-gym has no such task; it has {', '.join(sorted(DATASETS))}.")
    items = reasoning_gym.create_dataset(task, size=options.data.problems or MADE_PROBLEMS, seed=options.seed)
    path = output / "problems" / f"{task}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, ({key: item[key] for key in ("question", "answer", "metadata")} for item in items))
    return str(path)


def _procedural(response: str, prompt: Prompt) -> str:
    from areal_mega.rewards.procedural import said_in  # loads all of reasoning-gym

    return said_in(response)


_SAID: dict[str, Callable[[str, Prompt], str | None]] = {
    "math": lambda response, prompt: final_answer(response),
    "final_number": lambda response, prompt: final_answer(response),
    "exact_match": lambda response, prompt: response,
    "choice": lambda response, prompt: picked(response, [str(o) for o in prompt.metadata.get("choices") or []]),
    "reasoning_gym": _procedural,
}
