r"""How often do math verifiers accept right answers and reject wrong ones? Prints a table in Markdown.

    python tools/verifier_table.py ../shared/data/math_500.jsonl ../shared/data/gsm8k_test.jsonl

Every reference answer is written in five styles, each where it can be: in \boxed{}, as a fraction, as a decimal, with a
unit, and in words around it, unboxed. All of these are right. Wrong answers are made from the reference (another digit,
the other sign, ten times as much, the inverse, the answer of another problem, two answers at once) and written in the
same styles. Three verifiers judge them: ours (the verifier "math"), math-verify with its own extraction and defaults,
and exact match of the last \boxed{} (else the whole response) with the reference.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, getcontext
from fractions import Fraction
from pathlib import Path

import math_verify

from areal_mega.config.errors import UserError
from areal_mega.config.options import RewardOptions
from areal_mega.data import Prompt
from areal_mega.data.boxes import boxed
from areal_mega.data.formats import FORMATS, NoAnswerError, format_of
from areal_mega.data.records import read_records
from areal_mega.rewards.judge import score_all

STYLES = ("boxed", "fraction", "decimal", "units", "words")
VERIFIERS = ("ours", "math-verify", "exact match")
WORDS = (
    "At first one might think of {wrong}, but that forgets a case. So the final answer is ${right}$.",
    "Let us check: the first try gave {wrong}. Therefore, the answer is ${right}$. I hope this helps!",
    "We start from {wrong} and correct it.\n\n**Answer:** ${right}$",
)
UNITS = (r"\text{{ cm}}", r"\text{{ apples}}", r"^\circ", r" \mbox{{ inches}}")
DIGITS = 10


@dataclass(frozen=True)
class Case:
    """A response, and whether it is right. kind: the style of a right answer, "wrong" or "hedged"."""

    kind: str
    response: str
    reference: str
    right: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="data sets of mathematical problems")
    parser.add_argument("--limit", type=int, help="only so many problems of each")
    parser.add_argument("--errors", type=Path, help="write what our verifier got wrong here, as JSONL")
    parser.add_argument("--workers", type=int, default=2, help="processes of our verifier (2)")
    arguments = parser.parse_args()
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    errors: list[dict] = []
    print("| set | answers | verifier | " + " | ".join(STYLES) + " | wrong rejected | hedged rejected |")
    print("|---|---|---|" + "---|" * (len(STYLES) + 2))
    try:
        for file in arguments.files:
            answers = references(file)[: arguments.limit]
            cases = list(all_cases(answers, random.Random(0)))
            print_rows(Path(file).stem, len(answers), cases, arguments.workers, errors)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.errors:
        arguments.errors.write_text("".join(json.dumps(error, ensure_ascii=False) + "\n" for error in errors))
    return 0


def references(file: str) -> list[str]:
    """The reference answers of a data set that has them."""
    answers = []
    for _, record in read_records(file, "FILE"):
        try:
            answers.append(FORMATS[format_of(record)].read(record).answers[0])
        except NoAnswerError:
            continue
    return answers


def all_cases(answers: list[str], rng: random.Random) -> Iterator[Case]:
    """Right answers in every style they can be written in, and wrong ones in a style each."""
    for index, answer in enumerate(answers):
        wrongs = wrong_answers(answer, answers, rng)
        for style in STYLES:
            response = render(answer, style, index, wrongs[0])
            if response is not None:
                yield Case(style, response, answer, True)
        for place, wrong in enumerate(wrongs):
            fitting = [r for style in STYLES if (r := render(wrong, style, index + place, answer)) is not None]
            yield Case("wrong", fitting[(index + place) % len(fitting)], answer, False)
        hedged = (
            rf"Either \boxed{{{answer}}} or \boxed{{{wrongs[0]}}}.",
            rf"\boxed{{{answer}}}, no, \boxed{{{wrongs[0]}}}.",
        )
        yield Case("hedged", hedged[index % 2], answer, False)


def render(answer: str, style: str, index: int, other: str) -> str | None:
    """The answer in a style; None where it cannot be written so."""
    value = value_of(answer)
    if style == "boxed":
        return rf"Adding both sides gives the result \boxed{{{answer}}}."
    if style == "words":
        return WORDS[index % len(WORDS)].format(wrong=f"${other}$", right=answer)
    if value is None:
        return None
    if style == "units":
        return rf"It is \boxed{{{answer}{UNITS[index % len(UNITS)].format()}}}."
    if style == "fraction":
        k = 1 if value.denominator > 1 else 2
        sign = "-" if value < 0 else ""
        return rf"It is \boxed{{{sign}\frac{{{k * abs(value.numerator)}}}{{{k * value.denominator}}}}}."
    return rf"It is \boxed{{{decimal(value)}}}."


def decimal(value: Fraction) -> str:
    """With a point; one that does not end is rounded to ten significant digits."""
    getcontext().prec = DIGITS if ends_not(value) else 400
    text = f"{Decimal(value.numerator) / Decimal(value.denominator):f}"
    return text if "." in text else f"{text}.0"


def ends_not(value: Fraction) -> bool:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest > 1


def value_of(answer: str) -> Fraction | None:
    r"""The number an answer plainly is: 18, 1,000, -1.25, \frac{1}{2}."""
    text = answer.replace(r"\!", "").replace(" ", "").replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    sign = -1 if text.startswith("-") else 1
    text = text.removeprefix("-")
    if m := re.fullmatch(r"\\frac(?:\{(\d+)\}|(\d))(?:\{(\d+)\}|(\d))", text):
        return sign * Fraction(int(m[1] or m[2]), int(m[3] or m[4]))
    if re.fullmatch(r"\d{1,3}(,\d{3})+|\d*\.?\d+", text):
        return sign * Fraction(text.replace(",", ""))
    return None


def wrong_answers(answer: str, answers: list[str], rng: random.Random) -> list[str]:
    """Two or three answers that are not equal to it."""
    value = value_of(answer)
    if value is not None:
        changes = [value + 1, value - 1, value * 10, -value, value + Fraction(1, 2), value + Fraction(1, 100)]
        changes += [1 / value] if value else []
        wrongs = rng.sample([change for change in changes if change != value], 3)
        return [
            rf"\frac{{{w.numerator}}}{{{w.denominator}}}" if ends_not(w) else decimal(w).removesuffix(".0")
            for w in wrongs
        ]
    others = [other for other in answers if other != answer and shape(other) != shape(answer)]
    changed = {rng.choice(others), *slips(answer, rng)} - {answer}
    return rng.sample(sorted(changed), min(3, len(changed)))


def slips(answer: str, rng: random.Random) -> Iterator[str]:
    """A formula with one thing wrong: a digit, a sign, a bracket, the order of a pair, an element left out."""
    if digits := list(re.finditer(r"\d", answer)):
        digit = rng.choice(digits)
        yield answer[: digit.start()] + str(int(digit[0]) % 9 + 1) + answer[digit.end() :]
    if sign := re.search(r"(?<=[\w}])\s*[+-]", answer):
        other = "-" if "+" in sign[0] else "+"
        yield answer[: sign.start()] + other + answer[sign.end() :]
    if bare := re.fullmatch(r"([(\[])([^,()\[\]]+),([^,()\[\]]+)([)\]])", answer):
        yield f"{bare[1]}{bare[3]},{bare[2]}{bare[4]}"
        yield f"{'[' if bare[1] == '(' else '('}{bare[2]},{bare[3]}{bare[4]}"
    if re.fullmatch(r"[^()\[\]{}]+(,[^()\[\]{}]+)+", answer):
        yield answer.rpartition(",")[0]


def shape(answer: str) -> str:
    """Answers of one shape may be equal without being the same text."""
    return re.sub(r"\\text|\\mbox|\\[dt]?frac|[\s{}$\\!]", "", answer).lower()


def print_rows(name: str, count: int, cases: list[Case], workers: int, errors: list[dict]) -> None:
    """A row for each verifier: share of right answers accepted in each style, of wrong ones rejected."""
    judged = {
        "ours": ours(cases, workers),
        "math-verify": [plain(case, i, len(cases)) for i, case in enumerate(cases)],
        "exact match": [exact(case) for case in cases],
    }
    for verifier in VERIFIERS:
        good: dict[str, list[bool]] = defaultdict(list)
        for case, accepted in zip(cases, judged[verifier], strict=True):
            good[case.kind].append(accepted == case.right)
        cells = [f"{100 * sum(good[k]) / len(good[k]):.1f}" if good[k] else "" for k in (*STYLES, "wrong", "hedged")]
        first = f"{name} | {count}" if verifier == "ours" else " | "
        print(f"| {first} | {verifier} | " + " | ".join(cells) + " |", flush=True)
    sizes = {kind: sum(case.kind == kind for case in cases) for kind in (*STYLES, "wrong", "hedged")}
    print(f"{name}: cases {sizes}", file=sys.stderr, flush=True)
    for case, accepted in zip(cases, judged["ours"], strict=True):
        if accepted != case.right:
            errors.append({"set": name, "kind": case.kind, "reference": case.reference, "response": case.response})


def ours(cases: list[Case], workers: int) -> list[bool]:
    prompts = [Prompt("", [], "", case.reference) for case in cases]
    wanted = [(case.response, prompt, "math") for case, prompt in zip(cases, prompts, strict=True)]
    return [score.value >= 1 for score in score_all(wanted, RewardOptions(name="math", workers=workers))]


def plain(case: Case, index: int, total: int) -> bool:
    """math-verify as its users call it."""
    if index % 200 == 0 and sys.stderr.isatty():
        print(f"\r\x1b[Kmath-verify: {index} of {total}", end="", file=sys.stderr, flush=True)
    gold = math_verify.parse(f"${case.reference}$")
    return math_verify.verify(gold, math_verify.parse(case.response))


def exact(case: Case) -> bool:
    said = boxed(case.response)
    return (said[-1] if said else case.response).strip() == case.reference.strip()


if __name__ == "__main__":
    sys.exit(main())
