"""Verifiers that compare text: the whole response, its last number, or its format.

They look at the response once, with expressions that take linear time, so they run in place.
"""

from __future__ import annotations

import re
from decimal import Decimal

from areal_mega.data.boxes import boxed
from areal_mega.data.sample import Prompt

# A minus after a digit is a difference, not a sign; a comma belongs to a number only between groups of three.
_NUMBER = re.compile(r"(?:(?<!\d)-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


def exact_match(response: str, prompt: Prompt) -> bool:
    """The response is a reference answer, up to surrounding white space."""
    return response.strip() in {answer.strip() for answer in prompt.references}


def final_number(response: str, prompt: Prompt) -> bool:
    """The last number in the response equals the last one of a reference, digit by digit: 5.0 is 5, 1,234 is 1234."""
    said = _numbers(response)
    return bool(said) and any(right and said[-1] == right[-1] for right in map(_numbers, prompt.references))


def think_format(response: str, prompt: Prompt) -> bool:
    """``<think>...</think>`` once, at the start, and text behind it. The prompt may have opened the tag."""
    return bool(_after_thought(response, prompt))


def answer_format(response: str, prompt: Prompt) -> bool:
    """``<answer>...</answer>`` once, with text inside, at the end."""
    if response.count("<answer>") != 1 or response.count("</answer>") != 1:
        return False
    inside = response.partition("<answer>")[2]
    return inside.rstrip().endswith("</answer>") and bool(inside.partition("</answer>")[0].strip())


def think_answer_format(response: str, prompt: Prompt) -> bool:
    """``<think>...</think>``, then ``<answer>...</answer>``, and nothing else."""
    rest = _after_thought(response, prompt)
    return rest.startswith("<answer>") and answer_format(rest, prompt)


def boxed_format(response: str, prompt: Prompt) -> bool:
    r"""There is a ``\boxed{...}`` with something in it."""
    return any(content.strip() for content in boxed(response))


def _after_thought(response: str, prompt: Prompt) -> str:
    """What stands behind the one thought at the start; empty where there is no such thought."""
    text = response.strip()
    if prompt.text.rstrip().endswith("<think>") and not text.startswith("<think>"):
        text = "<think>" + text
    if not text.startswith("<think>") or text.count("<think>") != 1 or text.count("</think>") != 1:
        return ""
    return text.partition("</think>")[2].strip()


def _numbers(text: str) -> list[Decimal]:
    return [Decimal(number.replace(",", "")) for number in _NUMBER.findall(text)]
