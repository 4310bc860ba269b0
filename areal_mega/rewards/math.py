r"""Mathematical answers: is what the response says equal to a reference answer?

Numbers are compared exactly, words as words, lists and tuples element by element; what is left (formulas, intervals,
matrices) is compared by math-verify. Two rules are stricter than math-verify's: where a number is asked for, a sum or
product that was left standing is no answer, and a decimal is never rounded to fit another one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

from math_verify import LatexExtractionConfig, parse, verify

from areal_mega.data.boxes import boxed
from areal_mega.data.sample import Prompt
from areal_mega.rewards.answers import final_answer
from areal_mega.rewards.numbers import Number, parse_number
from areal_mega.rewards.score import Score
from areal_mega.rewards.units import contradict, split_unit

# math-verify warns that nobody bounds its time: the worker this runs in is killed at the limit.
logging.getLogger("math_verify").setLevel(logging.ERROR)
_LATEX = [LatexExtractionConfig(boxed_match_priority=-1)]
# No answer is longer, and the expressions below are not meant for more.
_LONGEST = 2000
_LONGEST_FORMULA = 1000

_CHARACTERS = str.maketrans(
    {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "∪": r"\cup "}
    | {"≤": r"\le ", "≥": r"\ge ", "∈": r"\in ", "²": "^2", "³": "^3", "\u00a0": " ", "＄": "$"}
)
_REWRITES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r",\\!\s*"), ","),  # a thousands comma; any other comma with a space begins the next element
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<!\\)\\(?:[!,;:> ]|quad(?![a-z])|qquad(?![a-z])|displaystyle|limits)|~"), " "),
    (re.compile(r"\\(?:left|right|[bB]ig+[lr]?)(?![A-Za-z])\s*"), ""),
    (re.compile(r"\\[dtc]frac(?![a-z])"), r"\\frac"),
    (re.compile(r"\\(?:text(?:bf|it|rm|sf|tt)|math(?:rm|bf|it|sf|bb|cal)|mbox|hbox|operatorname)\s*\{"), r"\\text{"),
    (re.compile(r"\\(?:text)?(?:percent)(?![a-z])"), "%"),
    (re.compile(r"(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![A-Za-z\\])(?:pi|infinity)(?![A-Za-z])"), lambda m: {"pi": r"\pi", "infinity": r"\infty"}[m[0]]),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?:\s*,)?\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)\s*"), ", "),
    (re.compile(r"\s+"), " "),
]  # fmt: skip
_SYMBOL = r"(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?|[A-Za-z]\([A-Za-z]\))"
_LEFT_SIDE = re.compile(rf"{_SYMBOL}\s*(?:=(?!=)|\\in(?![a-z]))\s*")
_BASE = re.compile(r"([0-9A-Fa-f]+)_\{?\s*(\d+)\s*\}?")
_TIME = re.compile(r"(\d{1,2})\s*:\s*(\d\d)")
_WORDS = re.compile(r"[A-Za-z][A-Za-z'’-]*(?: [A-Za-z][A-Za-z'’-]*)*")
_NOT_WORDS = {"sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "ln", "sqrt", "pi", "infty", "mod", "max", "min"}
_NOT_EVALUATED = re.compile(r"\+|(?<=[\w})])\s*-|\\times|\\cdot|\\div|\*")
_MATRIX = re.compile(r"\\begin\{[pbvBV]?matrix\}(.*)\\end\{[pbvBV]?matrix\}", re.DOTALL)
_BRACKETS = {("(", ")"), ("[", "]"), ("(", "]"), ("[", ")")}


def math(response: str, prompt: Prompt) -> Score:
    """1 if the response's answer (see `areal_mega.rewards.answers`) equals any reference answer."""
    said = final_answer(response)
    if said is None:
        return Score(0.0, note="no answer found")
    right = any(equal(reference, said) for reference in prompt.references)
    return Score(float(right), note=f"said {said[:100]!r}")


def equal(reference: str, said: str) -> bool:
    r"""The answer is mathematically what the reference is; both may be LaTeX, with or without ``\boxed``."""
    if max(len(reference), len(said)) > _LONGEST:
        return _same_text(reference, said)
    reference, said = (clean(text) for text in (reference, said))
    if not reference or not said:
        return False
    return _same_text(reference, said) or _equal(reference, said)


def clean(text: str) -> str:
    r"""LaTeX without dressing: no dollars around it, no spacing commands, no ``\left``, one kind of fraction."""
    boxes = boxed(text)
    text = (boxes[-1] if boxes else text).translate(_CHARACTERS)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = text.strip(" *\n").rstrip(" .;:")
    if m := re.fullmatch(r"\$+([^$]+)\$+|\\\((.*)\\\)|\\\[(.*)\\\]", text):
        text = next(group for group in m.groups() if group is not None)
    while (m := re.fullmatch(r"\{([^{}]*)\}", text)) is not None:
        text = m[1]
    return text.strip(" ,;:").rstrip(".")


def _same_text(reference: str, said: str) -> bool:
    return re.sub(r"\s", "", reference) == re.sub(r"\s", "", said)


def _equal(reference: str, said: str) -> bool:
    """As `equal`, of clean texts."""
    reference, said = _sides(reference, said)
    for form in (_BASE, _TIME):
        if (r := form.fullmatch(reference)) is not None:
            s = form.fullmatch(said)
            return s is not None and [_digits(g) for g in r.groups()] == [_digits(g) for g in s.groups()]
    if (words := _words(reference)) is not None:
        return words == _words(said)
    if (verdict := _equal_quantities(reference, said)) is not None:
        return verdict
    r_matrix, s_matrix = _matrix(reference), _matrix(said)
    if r_matrix or s_matrix:
        return _equal_matrices(r_matrix, s_matrix)
    r_list, s_list = _elements(reference), _elements(said)
    if r_list and s_list:
        return _equal_elements(*r_list, *s_list)
    return _same_text(reference, said) or _equal_formulas(reference, said)


def _sides(reference: str, said: str) -> tuple[str, str]:
    """Without the left side, ``x = `` or ``x \\in ``, which is not part of the answer unless both have one."""
    if "=" not in reference and "=" in said and not re.search(r"[<>]|\\[lg]e|,", said):
        return reference, said.rpartition("=")[2].strip()
    r, s = _LEFT_SIDE.match(reference), _LEFT_SIDE.match(said)
    if r and s:
        same = r[0].replace(" ", "") == s[0].replace(" ", "")
        return (reference[r.end() :], said[s.end() :]) if same else (reference, said)
    if r and "=" not in said and _one_side(r, reference):
        return reference[r.end() :], said
    if s and _one_side(s, said):
        return reference, said[s.end() :]
    return reference, said


def _one_side(left: re.Match[str], text: str) -> bool:
    """The left side is that of all the text: of an interval or set, or of the only equation."""
    return r"\in" in left[0] or ("," not in text and text.count("=") == 1)


def _words(text: str) -> str | None:
    """An answer in words, or the letter of a choice, to be compared as it stands; None for a formula."""
    bare = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)
    bare = re.sub(r"\s+", " ", bare).strip(" .()\"'")
    if not _WORDS.fullmatch(bare) or _NOT_WORDS.intersection(bare.split()):
        return None
    if r"\text" not in text and max(map(len, bare.split())) < 3 and not re.fullmatch(r"\([A-Z]\)", text):
        return None if len(bare) > 1 or bare.islower() else bare.casefold()
    return bare.casefold()


def _equal_quantities(reference: str, said: str) -> bool | None:
    """Compares two numbers with or without units; None where one of them is no number."""
    (r_text, r_unit), (s_text, s_unit) = split_unit(reference), split_unit(said)
    r, s = parse_number(r_text), parse_number(s_text)
    if contradict(r_unit, s_unit):
        return False
    if r is not None and s is not None:
        return _equal_numbers(r, r_unit == "percent", s, s_unit == "percent")
    if r is not None and _NOT_EVALUATED.search(s_text):
        return False
    if r_unit is None and s_unit is None:
        return None
    return _equal(r_text, s_text) if (r_text, s_text) != (reference, said) else None


def _equal_numbers(r: Number, r_percent: bool, s: Number, s_percent: bool) -> bool:
    """A percent sign may be left out, and 25% may be written 0.25; 0.5% is not 0.5."""
    if r_percent == s_percent:
        return r.equals(s)
    as_fraction = _hundredth(r).equals(s) if r_percent else r.equals(_hundredth(s))
    sign_left_out = r.equals(s) and (r_percent or abs(r.value) > 1)
    return as_fraction or sign_left_out


def _hundredth(x: Number) -> Number:
    return Number(x.value / 100, None if x.places is None else x.places + 2, x.digits)


def _digits(text: str) -> str:
    return text.lstrip("0").upper() or "0"


def _elements(text: str) -> tuple[str, list[str]] | None:
    """Brackets and elements of a list ("" around it), a set or a tuple; None for anything else."""
    kind, inside = "", text
    if re.fullmatch(r"\\\{.*\\\}", text):
        inside = text[2:-2]
    elif (text[0], text[-1]) in _BRACKETS:
        kind, inside = text[0] + text[-1], text[1:-1]
    parts, depth, start = [], 0, 0
    for mark in re.compile(r"\\[{}]|[(\[{]|[)\]}]|,").finditer(inside):
        if mark[0] == ",":
            if depth == 0:
                parts.append(inside[start : mark.start()].strip())
                start = mark.end()
            continue
        depth += 1 if mark[0][-1] in "([{" else -1
        if depth < 0:  # the brackets around the text are not a pair: (1,2) \cup (3,4)
            return None
    parts.append(inside[start:].strip())
    if len(parts) < 2 or not all(parts) or r"\pm" in text or r"\begin" in text:
        return None
    return kind, parts


def _equal_elements(r_kind: str, r: list[str], s_kind: str, s: list[str]) -> bool:
    """Lists and sets in any order, tuples and intervals in theirs."""
    if r_kind != s_kind or len(r) != len(s):
        return False
    if r_kind:
        return all(equal(a, b) for a, b in zip(r, s, strict=True))
    left = list(s)
    for element in r:
        match = next((i for i, other in enumerate(left) if equal(element, other)), None)
        if match is None:
            return False
        del left[match]
    return True


def _matrix(text: str) -> list[list[str]] | None:
    """Rows of a matrix or column vector, whatever its brackets."""
    m = _MATRIX.fullmatch(text)
    if m is None or r"\begin" in m[1]:
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^]]*\])?", m[1]) if row.strip()]
    return [[entry.strip() for entry in row.split("&")] for row in rows]


def _equal_matrices(r: list[list[str]] | None, s: list[list[str]] | None) -> bool:
    if not r or not s or [len(row) for row in r] != [len(row) for row in s]:
        return False
    return all(equal(a, b) for r_row, s_row in zip(r, s, strict=True) for a, b in zip(r_row, s_row, strict=True))


def _equal_formulas(reference: str, said: str) -> bool:
    if max(len(reference), len(said)) > _LONGEST_FORMULA or re.search(r"\\text\s*\{", said):
        return False
    if _words(said) is not None and len(said) > 1:
        return False
    r, s = _parse(reference), _parse(said)
    return bool(r and s) and verify(r, s, allow_set_relation_comp=True, timeout_seconds=None)


def _parse(formula: str) -> list:
    """What math-verify reads in a formula, without the text it falls back to where it reads nothing."""
    return [x for x in parse(f"${formula}$", _LATEX, parsing_timeout=None) if not isinstance(x, str)]


# Its first formula costs math-verify a second of loading, which no answer should be charged for.
_parse("1")
