"""A truth table of answers as models write them; the references are real ones of MATH and GSM8K."""

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
from problems import problem

from areal_mega.rewards.math import equal, math

DATA = Path(__file__).parents[2].parent / "shared" / "data"

RIGHT = [
    ("18", "18.0"), ("18", r"\$18"), ("18", "18 dollars"), ("18", r"18\text{ dollars}"), ("10080", r"10,\!080"),
    (r"10,\!080", "10080"), (r"11,\! 111,\! 111,\! 100", "11111111100"), ("1234", "1,234"), ("-3", "−3"),
    (r"\frac{14}{3}", "14/3"), (r"\frac{14}{3}", r"4\frac{2}{3}"), (r"\frac{14}{3}", r"\dfrac{14}{3}"),
    (r"\frac{14}{3}", "4.666667"), (r"\frac43", r"\frac{4}{3}"), (r"-\frac{35}{9}", r"\frac{-35}{9}"),
    (r"1\frac{4}{5}", "1.8"), (r"137 \frac{1}{2}", "137.5"), (r"\frac{1}{2}", "0.5"), ("1.25", r"\frac{5}{4}"),
    (".0000672", r"6.72\times 10^{-5}"), ("30000", r"3 \times 10^4"), ("30000", "3e4"),
    (r"25\%", "25%"), (r"25\%", "25"), (r"25\%", "0.25"), ("25", r"25\%"), ("0.25", r"25\%"), ("0.5", "50 percent"),
    (r"90^\circ", "90"), (r"90^\circ", r"90^{\circ}"), (r"90^\circ", r"90 \text{ degrees}"), ("90", "90°"),
    (r"\frac{270}7\text{ degrees}", "270/7"), (r"864 \mbox{ inches}^2", "864"),
    (r"864 \mbox{ inches}^2", r"864\text{ square inches}"), (r"15\mbox{ cm}^2", r"15\text{ cm}^2"),
    (r"15\mbox{ cm}^2", "15 cm^2"), (r"5.4 \text{ cents}", "5.4"), (r"\$18.90", "18.9"), (r"\$32,\!348", "32348"),
    (r"14 \text{ right triangles}", "14"), ("5", "5 miles per hour"), ("12", r"12\ \mathrm{m}"),
    (r"\text{Evelyn}", "Evelyn"), (r"\text{Evelyn}", r"\textbf{Evelyn}"), (r"\text{even}", "Even"),
    (r"\text{(C)}", "C"), (r"\text{(C)}", r"(C)"), (r"\text{(E)}", r"\text{E}"), ("C", r"\text{(C)}"),
    ("52_8", "52_{8}"), ("4210_{5}", "4210_5"), (r"05\!:\!00", "5:00"),
    ("x=5", "5"), ("5", "x = 5"), (r"x \in [-2,7]", "[-2,7]"), ("[-2,7]", r"x \in [-2, 7]"), ("y = 2x + 3", "2x+3"),
    ("7", "3 + 4 = 7"), ("y = 2x + 3", "y - 2x = 3"), ("5x - 7y + 11z + 4 = 0", "-5x+7y-11z-4=0"),
    ("3, 5, 7", "7, 5, 3"), ("1,-2", r"\{-2, 1\}"), ("1,-2", "x = 1 or x = -2"), ("1,-2", r"1 \text{ and } -2"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"), (r"\{1\pm\sqrt{5},-2\}", r"-2, 1+\sqrt5, 1-\sqrt5"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"), ("(6,31,-1)", "(6, 31, -1)"), ("(3,4]", r"\left(3,4\right]"),
    (r"\left(\frac{3}{5},\frac{8}{3}\right]", r"(0.6, \tfrac{8}{3}]"), (r"(2,\infty)", "x > 2"),
    (r"(-\infty, 2) \cup (3, \infty)", r"(3,\infty) \cup (-\infty,2)"),
    (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\begin{bmatrix} 0.2 \\ -3.6 \end{bmatrix}"),
    (r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}", r"\begin{pmatrix}-1&0\\0&-1\end{pmatrix}"),
    (r"3\sqrt{13}", r"3 \sqrt{13}"), (r"3\sqrt{13}", r"\sqrt{117}"), (r"3\sqrt{13}", "3sqrt(13)"), (r"\pi", "π"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"), (r"16\sqrt{3}", "27.712813"), ("6-5i", "-5i + 6"),
    (r"x^5 - x^4", r"x^4(x-1)"), ("2k+2", "2(k+1)"), ("(a+5)(b+2)", "ab+2a+5b+10"), (r"\cot x", r"\frac{1}{\tan x}"),
    ("p - q", "-q + p"), (r"2^{4950}", r"4^{2475}"), (r"18+2\pi", r"2(9+\pi)"), ("1024", "2^{10}"),
]  # fmt: skip

WRONG = [
    ("18", "19"), ("18", "-18"), ("18", "1.8"), ("1000", "1"), ("18", "18.5"), ("18", "118"), ("18", ""),
    (".0000672", ".0000674"), ("0.57", r"\frac{4}{7}"), (r"\frac{14}{3}", "4.67"), (r"\frac{14}{3}", "4.6666"),
    (r"\frac{14}{3}", r"\frac{3}{14}"), (r"\frac{1}{2}", "2"), ("9007199254740992", "9007199254740993"),
    ("0.5", r"0.5\%"), ("50", "0.5"), (r"25\%", "2.5"), ("1", r"1\%"),
    (r"5.4 \text{ cents}", "5.4 dollars"), (r"90^\circ", r"90\%"), (r"15\mbox{ cm}^2", r"15\text{ cm}"),
    (r"12\text{ inches}", r"12\text{ feet}"), ("14", r"14 \text{ apples and 3 pears}"), ("3", "3R"), ("5", "5x"),
    (r"\text{Evelyn}", "Navin"), (r"\text{Evelyn}", "Nevely"), (r"\text{even}", "odd"), (r"\text{(C)}", "D"),
    (r"\text{(C)}", "c+1"), (r"\text{ellipse}", "e"), ("52_8", "52"), ("52_8", "42"), ("52_8", "52_9"),
    (r"05\!:\!00", "5:30"),
    ("7", "3 + 4"), ("7", r"\frac{6+8}{2}"), ("6", r"2 \cdot 3"), ("6", "2*3"), ("2", "3-1"), ("7", "7+0"),
    ("x=5", "y = 5"), ("5", "x = 6"), ("5", "x = 5 or x = 6"), ("y = 2x + 3", "y = 2x - 3"),
    ("3, 5, 7", "3, 5"), ("3, 5, 7", "3, 5, 7, 9"), ("2", "2, 3"), ("2,3", "2"), ("3, 3, 5", "3, 5, 5"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}"), ("(6,31,-1)", "(31,6,-1)"), ("(1,2)", "[1,2]"), ("(3,4]", "(3,4)"),
    (r"(0,9) \cup (9,36)", "(0,36)"), (r"(2,\infty)", r"x \ge 2"), ("(1,2)", "1,2"), ("[0,1]", "0"),
    (r"\begin{pmatrix} -2 \\ -14 \\ -7 \end{pmatrix}", r"\begin{pmatrix} -2 \\ -14 \\ 7 \end{pmatrix}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "(1, 2)"),
    (r"3\sqrt{13}", r"3\sqrt{12}"), (r"16\sqrt{3}", "27.7"), (r"\pi", "3.14"), ("6-5i", "6+5i"), ("p - q", "q - p"),
    ("3R^2", "3R^3"), ("2k+2", "2k+1"), (r"\cot x", r"\tan x"), (r"\infty", r"-\infty"), ("2^{10}", "2^{11}"),
    ("18", "I do not know"), ("18", "?"), ("18", r"\text{eighteen or so}"), ("5", "555555"), ("1/3", "0.3333"),
]  # fmt: skip


@pytest.mark.parametrize(("reference", "said"), RIGHT)
def test_right_answers_are_accepted(reference, said):
    assert equal(reference, said)
    assert math(rf"So it is \boxed{{{said}}}.", problem(reference)).value == 1


@pytest.mark.parametrize(("reference", "said"), WRONG)
def test_wrong_answers_are_rejected(reference, said):
    assert not equal(reference, said)
    assert math(rf"So it is \boxed{{{said}}}.", problem(reference)).value == 0


def test_each_solution_is_right_and_may_be_boxed():
    prompt = problem(r"\boxed{204}", r"\boxed{\frac{1}{2}}")
    assert [math(text, prompt).value for text in (r"\boxed{204}", r"\boxed{0.5}", r"\boxed{205}", "")] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("Natalia sold 48+24 = 72 clips.\n#### 72", 1),
        ("Natalia sold 72 clips in all.", 1),
        ("The answer is $72$ clips. She sold 48 in April.", 1),
        (r"<think>\boxed{71}?</think> It is \boxed{72}.", 1),
        (r"\boxed{72}, or rather \boxed{71}", 0),
        ("72 or 73", 0),
        ("48+24", 0),
    ],
)
def test_gsm8k_responses(response, value):
    assert math(response, problem("72")).value == value


def references(name, count=None):
    from areal_mega.data.formats import FORMATS, NoAnswerError, format_of

    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{name} is not in {DATA}")
    answers = []
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        try:
            answers.append(FORMATS[format_of(record)].read(record).answers[0])
        except NoAnswerError:
            assert not record["answer"]
    return answers if count is None else random.Random(0).sample(answers, count)


@pytest.mark.parametrize("name", ["math_500.jsonl", "gsm8k_test.jsonl", "aime24.jsonl", "math_train.jsonl"])
def test_real_references_are_accepted_boxed_and_in_words(name):
    for answer in set(references(name)):
        prompt = problem(answer)
        assert math(rf"\boxed{{{answer}}}", prompt).value == 1, answer
        assert math(f"One might say 41, but in fact the answer is ${answer}$.", prompt).value == 1, answer


def test_the_answers_of_other_problems_are_rejected():
    answers = references("math_train.jsonl", 300)
    numbers = {a for a in answers if a.isdigit()}
    for one, other in pairwise(answers):
        if one != other and {one, other} <= numbers:
            assert not equal(one, other), (one, other)
