"""Rejection-sampling fine-tuning: sample answers, keep right ones, learn them.

RAFT (Dong et al., 2023, arXiv:2304.06767), with a verifier in the place of a reward model. Sampling is evaluation's,
with its file of answers, so that a run that was ended goes on; training is SFT's. Both happen in one run directory, one
after the other: while the engines generate, the trainers hold no model.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from areal_mega.config.checks import check
from areal_mega.config.errors import UserError
from areal_mega.config.options import (
    DataOptions,
    DataSetOptions,
    EvaluateOptions,
    EvaluationDataOptions,
    KeepOptions,
    RejectionOptions,
)
from areal_mega.data import Prompt
from areal_mega.data.jsonl import read_answers, read_prompts, write_lines
from areal_mega.data.mixing import training_sets
from areal_mega.data.tokenizer import load_tokenizer
from areal_mega.evaluation.answers import Answer, AnswerFile, problem_key
from areal_mega.evaluation.benchmarks import Problems
from areal_mega.evaluation.run import Evaluation
from areal_mega.policy.spec import read_config
from areal_mega.rewards import check_answers
from areal_mega.runtime.distributed import Topology
from areal_mega.trainers.sft import sft_task
from areal_mega.trainers.supervised import SupervisedTrainer

KEPT = "kept.jsonl"


def run(options: RejectionOptions, topology: Topology, directory: Path) -> None:
    """A whole run: sample, keep, train, save, report."""
    started = time.perf_counter()
    read_config(options.model.path)
    tokenizer = load_tokenizer(options.model.path)
    facts = topology.broadcast(sample(options, topology, directory, tokenizer) if topology.is_main else None)
    steps = options.steps or math.ceil(options.epochs * facts["kept_answers"] / options.sequences_per_step)
    options = replace(options, steps=steps)
    check(options, topology.world, topology.device.type == "cuda")  # the schedule of so many steps
    kept = DataOptions(str(directory / KEPT), shuffle=options.data.shuffle, format="ours", prompt_type="plain")

    def read(name: str, how: DataSetOptions) -> list[dict[str, list]]:
        return read_answers(how.path, name, tokenizer, options.max_tokens, how, skip_unusable=True)

    SupervisedTrainer(replace(options, data=kept), topology, directory, sft_task(read)).run(started, facts)


def sample(options: RejectionOptions, topology: Topology, directory: Path, tokenizer: Any) -> dict[str, float]:
    """Write the kept answers to ``kept.jsonl`` of the run directory; how many there are, and of how many.

    Raises:
        UserError: the data or the engine's options cannot be used, or no answer is right.
    """
    sets = read_problems(options, tokenizer)
    asked = EvaluateOptions(
        seed=options.seed,
        model=options.model,
        data=EvaluationDataOptions(format=options.data.format, prompt_type=options.data.prompt_type),
        rollout=options.rollout,
        reward=options.reward,
        runtime=options.runtime,
    )
    answers = AnswerFile(directory, asked)
    Evaluation(asked, directory, answers, topology.device.type, tokenizer, "sampling").answer(sets)
    answers.close()
    lines: list[dict[str, str]] = []
    tally = Tally()
    for problems in sets:
        for number, prompt in enumerate(problems.prompts):
            given = answers.of(problems.name, problem_key(number, prompt))[: options.rollout.samples_per_prompt]
            chosen = choose(given, options.keep, seed=f"{options.seed}-{problems.name}-{number}")
            tally.add(given, chosen)
            lines += [{"id": prompt.id, "prompt": prompt.text, "answer": answer.response} for answer in chosen]
    if not lines:
        raise UserError(
            f"none of {tally.answers} answers to {tally.prompts} prompts can be kept: {tally.right} are right, "
            f"keep.max_success={options.keep.max_success}. Raise rollout.samples_per_prompt, take easier prompts, or "
            "start from a better model."
        )
    write_lines(directory / KEPT, lines)
    return tally.facts(len(lines))


def read_problems(options: RejectionOptions, tokenizer: Any) -> list[Problems]:
    """The problems of each data set, whose own answers get full score."""
    skip = options.data.unusable == "skip"

    def read(name: str, how: DataSetOptions) -> list[Prompt]:
        prompts = read_prompts(how.path, name, tokenizer, options.rollout.max_prompt_tokens, how, skip)
        return check_answers(prompts, options.reward, name, skip)

    return [Problems(name, read(name, how), options.reward) for name, how in training_sets(options.data)]


def choose(answers: Sequence[Answer], keep: KeepOptions, seed: str) -> list[Answer]:
    """The answers to a problem that are learned: right, whole, and no two the same but for white space."""
    right = [answer for answer in answers if usable(answer)]
    if len(right) > keep.max_success * len(answers):
        return []
    different = list({" ".join(answer.response.split()): answer for answer in right}.values())
    if keep.choose == "all":
        return different
    if keep.choose == "shortest":
        different.sort(key=lambda answer: answer.length)
    else:
        random.Random(seed).shuffle(different)
    return different[: keep.answers]


def usable(answer: Answer) -> bool:
    """Whether it is right and has an end: of one that was cut off the model would learn to stop there."""
    return answer.correct and not answer.truncated


@dataclass
class Tally:
    """What was sampled. solved: prompts with a right answer. learned: prompts with an answer that is kept."""

    prompts: int = 0
    solved: int = 0
    learned: int = 0
    answers: int = 0
    right: int = 0

    def add(self, given: Sequence[Answer], chosen: Sequence[Answer]) -> None:
        """Count the answers to one prompt."""
        right = sum(map(usable, given))
        self.prompts += 1
        self.solved += right > 0
        self.learned += bool(chosen)
        self.answers += len(given)
        self.right += right

    def facts(self, kept: int) -> dict[str, float]:
        """For the summary."""
        return {
            "prompts": self.prompts,
            "prompts_with_right_answer": self.solved,
            "prompts_kept": self.learned,
            "answers": self.answers,
            "right_answers": self.right,
            "kept_answers": kept,
            "accuracy_of_samples": self.right / self.answers,
        }
