import pytest
from problems import problem

from areal_mega.rewards.text import (
    answer_format,
    boxed_format,
    exact_match,
    final_number,
    think_answer_format,
    think_format,
)


@pytest.mark.parametrize(
    ("response", "right"),
    [("17", True), (" 17\n", True), ("-17", False), ("17.", False), ("017", False), ("1 7", False), ("", False)],
)
def test_exact_match(response, right):
    assert exact_match(response, problem("17")) is right


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("3 + 4 = 7", "7", True),
        ("The answer is 1,234.", "1234", True),
        ("7 or 8", "7", False),
        ("-5", "5", False),
        ("5.0", "5", True),
        ("seven", "7", False),
        ("1234", "1,234", True),
        ("so 12", "12 apples", True),
        ("12", "apples", False),
        ("(3,4)", "4", True),
        ("10-3", "3", True),
        ("9007199254740993", "9007199254740992", False),
    ],
)
def test_final_number(response, answer, right):
    assert final_number(response, problem(answer)) is right


@pytest.mark.parametrize("verify", [exact_match, final_number])
def test_every_reference_is_right(verify):
    assert verify("8", problem("7", "8")) and not verify("9", problem("7", "8"))


THINK = "<think>Hm.</think>"
ANSWER = "<answer>7</answer>"


@pytest.mark.parametrize(
    ("verify", "response", "right"),
    [
        (think_format, f"{THINK} 7", True),
        (think_format, f"\n{THINK}\n{ANSWER}", True),
        (think_format, THINK, False),
        (think_format, "<think>Hm. 7", False),
        (think_format, f"So: {THINK} 7", False),
        (think_format, f"{THINK}{THINK} 7", False),
        (think_format, "7", False),
        (answer_format, f"It is {ANSWER}\n", True),
        (answer_format, f"{ANSWER} or so", False),
        (answer_format, f"{ANSWER}{ANSWER}", False),
        (answer_format, "<answer> </answer>", False),
        (answer_format, "</answer>7<answer>", False),
        (think_answer_format, f"{THINK}\n{ANSWER}", True),
        (think_answer_format, f"{THINK} so {ANSWER}", False),
        (think_answer_format, f"{THINK}{ANSWER}!", False),
        (think_answer_format, ANSWER, False),
        (boxed_format, r"It is \boxed{\frac{1}{2}}.", True),
        (boxed_format, r"It is \boxed{ }.", False),
        (boxed_format, r"It is \boxed{7", False),
        (boxed_format, "It is 7.", False),
    ],
)
def test_formats(verify, response, right):
    assert verify(response, problem("7")) is right


def test_the_prompt_may_open_the_thought():
    opened = problem("7", text="Add.<think>\n")
    assert think_format("Hm.</think> 7", opened) and think_answer_format(f"Hm.</think>{ANSWER}", opened)
    assert not think_format("Hm.</think> 7", problem("7"))
    assert not think_format("Hm. 7", opened)
