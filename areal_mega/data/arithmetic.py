"""The quickstart's task: sums and differences of two-digit numbers from reasoning-gym, and a careless pupil.

The quickstart's base model reads a textbook first and then what the pupil wrote, most of it with a slip. It has
seen how to calculate and how not to; which of the two it does is what reinforcement learning with a verifier
puts right.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import reasoning_gym

from areal_mega.data.jsonl import write_lines

ALL_PROBLEMS = 90 * 90 * 2


@dataclass(frozen=True)
class Problem:
    """A reasoning-gym ``chain_sum`` item: its question, and left and right number with the sign between them."""

    question: str
    answer: str
    left: int
    sign: str
    right: int


def problems(seed: int, held_out: int) -> tuple[list[Problem], list[Problem]]:
    """Distinct problems in random order, as (training, held-out): the draws miss two in a hundred of all there are."""
    items = reasoning_gym.create_dataset(
        "chain_sum", size=4 * ALL_PROBLEMS, seed=seed, min_terms=2, max_terms=2, min_digits=2, max_digits=2
    )
    distinct = list({item["question"]: _problem(item) for item in items}.values())
    random.Random(seed).shuffle(distinct)
    return distinct[held_out:], distinct[:held_out]


def careless_answer(problem: Problem, slip_rate: float, rng: random.Random) -> str:
    """The pupil's answer: with probability ``slip_rate`` it contains a slip.

    He forgets the carry (or takes the smaller digit from the larger instead of borrowing); where there is
    nothing to forget he counts one too far.
    """
    if rng.random() >= slip_rate:
        return problem.answer
    forgetful = str(_digit_by_digit(problem))
    return forgetful if forgetful != problem.answer else str(int(problem.answer) + 1)


def write_prompts(path: Path, items: Iterable[Problem]) -> None:
    """Problems with their right answers, one JSON line each."""
    write_lines(path, ({"prompt": p.question, "answer": p.answer, "question": p.question} for p in items))


def write_corpus(path: Path, items: list[Problem], chapters: list[tuple[int, float]], seed: int) -> None:
    """Answers to random problems, one JSON line each; a chapter is (number of lines, slip rate)."""
    rng = random.Random(seed)
    lines = [(p, rate) for count, rate in chapters for p in rng.choices(items, k=count)]
    write_lines(path, ({"prompt": p.question, "answer": careless_answer(p, rate, rng)} for p, rate in lines))


def write_pairs(path: Path, items: Iterable[Problem], seed: int) -> None:
    """Preference pairs, one JSON line each: the right answer, and the pupil's with a slip."""
    rng = random.Random(seed)
    lines = ({"prompt": p.question, "chosen": p.answer, "rejected": careless_answer(p, 1.0, rng)} for p in items)
    write_lines(path, lines)


def _problem(item: dict) -> Problem:
    left, sign, right = item["metadata"]["expression"].split()
    return Problem(item["question"], item["answer"], int(left), sign, int(right))


def _digit_by_digit(problem: Problem) -> int:
    """Tens and units on their own: no carry into the tens or hundreds, no borrowing."""
    if problem.sign == "+":
        tens = (problem.left // 10 + problem.right // 10) % 10
        units = (problem.left % 10 + problem.right % 10) % 10
        return 10 * tens + units
    tens = abs(problem.left // 10 - problem.right // 10)
    units = abs(problem.left % 10 - problem.right % 10)
    return (10 * tens + units) * (1 if problem.left >= problem.right else -1)
