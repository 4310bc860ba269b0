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
    closing = _closing_braces(text)
    at = 0
    while box := _BOX.search(text, at):
        if not box[0].endswith("{"):  # \boxed 5
            word = _WORD.match(text, box.end())
            assert word is not None
            at = word.end()
            yield box.start(), at, word[0]
        elif (closed := closing.get(box.end())) is not None:
            at = closed + 1
            yield box.start(), at, text[box.end() : closed]
        else:
            at = box.end()


def _closing_braces(text: str) -> dict[int, int]:
    """Where the brace is closed that was opened just before a place; all in one pass, as text may be hostile."""
    opened, closing = [], {}
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            opened.append(brace.end())
        elif brace[0] == "}" and opened:
            closing[opened.pop()] = brace.start()
    return closing
