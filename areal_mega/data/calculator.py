"""The quickstart's task with a tool: products of three-digit numbers, and a pupil who would rather estimate.

The model is far too small to multiply, but it can learn to write a calculator's call and to read its result. The base
model has seen how that is done, and then a pupil who mostly estimates or mistypes. Reinforcement learning with a
verifier puts that right.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from areal_mega.data.jsonl import write_lines

_NUMBERS = range(100, 1000)


@dataclass(frozen=True)
class Product:
    """Two numbers to multiply."""

    left: int
    right: int

    @property
    def question(self) -> str:
        return f"What is {self.left} * {self.right}?"

    @property
    def answer(self) -> str:
        return str(self.left * self.right)

    @property
    def estimate(self) -> str:
        """The product of the hundreds."""
        return str((self.left // 100) * (self.right // 100) * 10_000)

    @property
    def call(self) -> str:
        """What the model writes to have it calculated, in the shape `areal_mega.rollout.tools.calls` names json."""
        return json.dumps({"name": "calculator", "parameters": {"expression": f"{self.left} * {self.right}"}})


def problems(seed: int, count: int, held_out: int) -> tuple[list[Product], list[Product]]:
    """Distinct problems in random order, as (training, held-out)."""
    pairs = random.Random(seed).sample(range(len(_NUMBERS) ** 2), count + held_out)
    drawn = [Product(*(_NUMBERS[digit] for digit in divmod(pair, len(_NUMBERS)))) for pair in pairs]
    return drawn[held_out:], drawn[:held_out]


def transcript(
    problem: Product, estimate_rate: float, typo_rate: float, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """The pupil's turns, each a line for SFT with what came before it.

    With probability ``estimate_rate`` he estimates a number; with ``typo_rate`` one digit of his call is another.
    """
    asked = [{"role": "user", "content": problem.question}]
    chance = rng.random()
    if chance < estimate_rate:
        yield {"messages": asked, "answer": problem.estimate}
        return
    typed = _mistyped(problem, rng) if chance < estimate_rate + typo_rate else problem
    yield {"messages": asked, "answer": typed.call}
    read = [{"role": "assistant", "content": typed.call}, {"role": "tool", "content": typed.answer}]
    yield {"messages": [*asked, *read], "answer": typed.answer}


def write_prompts(path: Path, items: Iterable[Product]) -> None:
    """Problems with their right answers, one JSON line each."""
    write_lines(path, ({"prompt": p.question, "answer": p.answer, "question": p.question} for p in items))


def write_corpus(path: Path, items: list[Product], chapters: list[tuple[int, float, float]], seed: int) -> None:
    """Transcripts of random problems; a chapter is (number of problems, estimate rate, typo rate)."""
    rng = random.Random(seed)
    lines = [(p, estimates, typos) for count, estimates, typos in chapters for p in rng.choices(items, k=count)]
    write_lines(path, (line for p, estimates, typos in lines for line in transcript(p, estimates, typos, rng)))


def _mistyped(problem: Product, rng: random.Random) -> Product:
    """One digit of the first number is one more or less; its first stays, so that it keeps its length."""
    place = rng.choice((1, 10))
    digit = problem.left // place % 10
    return Product(problem.left + place * (-1 if digit == 9 else 1), problem.right)
