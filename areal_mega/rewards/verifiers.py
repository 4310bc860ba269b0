"""Verifiers of answers, and the reward that follows from their judgement."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal

from areal_mega.config.errors import UserError
from areal_mega.config.options import RewardOptions
from areal_mega.data import Prompt, Sample

# A minus after a digit is a difference, not a sign; a comma belongs to a number only between groups of three.
_NUMBER = re.compile(r"(?:(?<!\d)-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


def exact_match(response: str, answer: str) -> bool:
    """The response is the answer, up to surrounding white space."""
    return response.strip() == answer.strip()


def final_number(response: str, answer: str) -> bool:
    """The last number in the response equals the last one in the answer, digit by digit: 5.0 is 5, 1,234 is 1234."""
    said, right = _numbers(response), _numbers(answer)
    return bool(said and right) and said[-1] == right[-1]


VERIFIERS: dict[str, Callable[[str, str], bool]] = {"exact_match": exact_match, "final_number": final_number}


def check_answers(prompts: Sequence[Prompt], options: RewardOptions, source: str) -> None:
    """Refuse reference answers that no response could match. source: the option that names the file.

    Raises:
        UserError: an answer without a number, and the verifier compares numbers.
    """
    if options.name != "final_number":
        return
    for prompt in prompts:
        if not _numbers(prompt.answer):
            raise UserError(
                f"{source}: the answer {prompt.answer!r} of problem {prompt.id} has no number, but reward.name="
                "final_number compares numbers. Use reward.name=exact_match or remove the line."
            )


def judge(samples: Sequence[Sample], options: RewardOptions) -> None:
    """Set ``correct`` and ``reward`` of each sample."""
    verify = VERIFIERS[options.name]
    for sample in samples:
        sample.correct = verify(sample.text, sample.prompt.answer)
        sample.reward = options.scale if sample.correct else options.wrong
        if sample.truncated and options.truncated is not None:
            sample.reward = options.truncated


def _numbers(text: str) -> list[Decimal]:
    return [Decimal(number.replace(",", "")) for number in _NUMBER.findall(text)]
