r"""Where a response says its answer.

The policy, in this order:

1. What stands behind the last ``</think>`` counts, and inside the last ``<answer>...</answer>``, where they are.
2. The last ``\boxed{...}``. Boxes side by side, with nothing but commas or "and" between them, are one list.
3. What follows the last ``####`` (GSM8K), "answer is", "answer:" and the like, up to the end of the sentence.
4. The last formula in dollars.
5. The last line, if it is a formula and no sentence, from its last equals sign on; else the last number in the text.

It is always the last answer that counts: who revises an answer means the revision, and who lists guesses is judged
by one of them.
"""

from __future__ import annotations

import re

from areal_mega.data.boxes import boxes

_BETWEEN_BOXES = re.compile(r"[\s$,.;]*(?:and|or|\\text\{\s*(?:and|or)\s*\})?[\s$,]*")
_ANNOUNCED = re.compile(
    r"####|\b(?:final\s+answer|correct\s+answer|answer|result)\b[^\n.:=]{0,60}?(?:\bis\b(?:\s+that\b)?|\bequals\b|:|=)",
    re.IGNORECASE,
)
# What a formula may not contain bounds the search: text may be hostile.
_FORMULA = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\$(?!\s)((?:\\.|[^$\\\n])+?)\$|\\\(((?:(?!\\\().)+?)\\\)|\\\[((?:(?!\\\[).)+?)\\\]",
    re.DOTALL,
)
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|$)|[.!?]?\*\*")
_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_LAST_NUMBER = re.compile(rf"(?:(?<![\w.)])[-−])?\$?(?:{_WHOLE}?\.\d+|{_WHOLE}(?:/\d+)?)\s?%?")
_UNIT = re.compile(r"\s*(?:[A-Za-z]+ ?){1,4}")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


def final_answer(response: str) -> str | None:
    """The answer by the policy above, as it was written; None where there is none."""
    text = conclusion(response)
    return _last_boxes(text) or _announced(text) or _last_formula(text) or _last_line(text)


def conclusion(response: str) -> str:
    """The response behind its thoughts and inside its last answer tag, where it has them."""
    after = response.rpartition("</think>")[2]
    text = after if after.strip() else response
    _, opened, inside = text.rpartition("<answer>")
    if opened:
        return inside.partition("</answer>")[0]
    return text


def _last_boxes(text: str) -> str | None:
    found = list(boxes(text))
    if not found:
        return None
    first = len(found) - 1
    while first and _BETWEEN_BOXES.fullmatch(text, found[first - 1][1], found[first][0]):
        first -= 1
    contents = [content.strip() for _, _, content in found[first:]]
    # The same box twice in a row is one answer, repeated.
    return ", ".join(dict.fromkeys(contents)) or None


def _announced(text: str) -> str | None:
    announcements = list(_ANNOUNCED.finditer(text))
    if not announcements:
        return None
    said = text[announcements[-1].end() :].lstrip(" \t*:\n")
    if formula := _FORMULA.match(said):
        rest = said[formula.end() :]
        end = _SENTENCE_END.search(rest)
        unit = rest[: end.start()] if end else rest
        return _inside(formula) + (unit.rstrip() if _UNIT.fullmatch(unit) else "")
    end = _SENTENCE_END.search(said)
    sentence = (said[: end.start()] if end else said).strip()
    if formula := _FORMULA.search(sentence):
        return _inside(formula)
    return sentence or None


def _last_formula(text: str) -> str | None:
    formulas = list(_FORMULA.finditer(text))
    return _inside(formulas[-1]) if formulas else None


def _last_line(text: str) -> str | None:
    lines = [line.strip().strip("*") for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    if not _WORD.search(re.sub(r"\\text\s*\{[^}]*\}", "", lines[-1])):
        return re.split(r"(?<![<>\\!])=", lines[-1])[-1].strip(" .")
    numbers = [n[0].strip() for n in _LAST_NUMBER.finditer(text)]
    return numbers[-1] if numbers else (lines[-1] if len(lines) == 1 else None)


def _inside(formula: re.Match[str]) -> str:
    return next(group for group in formula.groups() if group is not None).strip()
