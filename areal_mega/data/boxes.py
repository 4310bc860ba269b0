r"""``\boxed{...}`` in LaTeX, where solutions say their answer."""

from __future__ import annotations

import re
from collections.abc import Iterator

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?=[0-9A-Za-z]))")
_WORD = re.compile(r"\w+")
_BRACE = re.compile(r"\\[\\{}]|[{}]")


def boxed(text: str) -> list[str]:
    r"""The contents of every ``\boxed{...}``, braces matched; one that is never closed has none."""
    return [content for _, _, content in boxes(text)]


def boxes(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and content of each box that is not inside another one."""
    at = 0
    while box := _BOX.search(text, at):
        if box[0].endswith("{"):
            closed = _closing_brace(text, box.end())
            if closed is None:  # nothing behind it is closed either, but for what it contains
                at = box.end()
                continue
            at = closed + 1
            yield box.start(), at, text[box.end() : closed]
        else:  # \boxed 5
            word = _WORD.match(text, box.end())
            assert word is not None
            at = word.end()
            yield box.start(), at, word[0]


def _closing_brace(text: str, at: int) -> int | None:
    depth = 1
    for brace in _BRACE.finditer(text, at):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return None
