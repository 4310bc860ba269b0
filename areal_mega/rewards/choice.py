"""Multiple choice: the letter of an option, or its text."""

from __future__ import annotations

import re

from areal_mega.data.boxes import boxed
from areal_mega.data.sample import Prompt
from areal_mega.rewards.answers import conclusion, final_answer
from areal_mega.rewards.score import Score

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTER = re.compile(r"\(?\s*([A-Za-z])\s*\)?(?:[.:)]\s*(?P<text>.*))?", re.DOTALL)
_ANNOUNCED = re.compile(
    r"(?:answer|option|choice)\b[^\n.:]{0,30}?(?:\bis\b|:|=)?\s*[*$]*\\?(?:text\{|mathrm\{)?\s*\(?([A-Z])\)?(?![A-Za-z'])"
)
_ALONE = re.compile(r"^\W*([A-Z])\W*$", re.MULTILINE)


def choice(response: str, prompt: Prompt) -> Score:
    r"""1 if the response picks the right option.

    The pick is the last of: a letter in ``\boxed{}``, a letter announced as the answer, a letter alone on its line.
    Where the line has ``choices`` (a list of texts, A first), the text of an option is as good as its letter.
    """
    options = [str(text) for text in prompt.metadata.get("choices") or []]
    said = picked(response, options)
    if said is None:
        return Score(0.0, note="no choice found")
    right = any(said == _letter_of(reference, options) for reference in prompt.references)
    return Score(float(right), note=f"said {said}")


def picked(response: str, options: list[str]) -> str | None:
    """The letter of the option that the response picks; None where it picks none."""
    text = conclusion(response)
    if boxes := boxed(text):
        return _letter_of(boxes[-1], options)
    for form in (_ANNOUNCED, _ALONE):
        if found := form.findall(text):
            return found[-1]
    said = final_answer(response)
    return _letter_of(said, options) if said else None


def _letter_of(text: str, options: list[str]) -> str | None:
    """The letter that ``(C)``, ``C``, ``C. its text`` or the text of option C stand for."""
    bare = _bare(text)
    if bare in (known := [_bare(option) for option in options]):
        return _LETTERS[known.index(bare)]
    letter = _LETTER.fullmatch(bare)
    if letter is None:
        return None
    picked = letter[1].upper()
    if letter["text"] and known and _bare(letter["text"]) != dict(zip(_LETTERS, known, strict=False)).get(picked):
        return None
    return picked


def _bare(text: str) -> str:
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    return text.strip(" \t\n$*.")
