import time

import pytest

from areal_mega.data.boxes import boxed
from areal_mega.rewards.answers import final_answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"So \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1}, no: \boxed{2}", "2"),  # the last box counts
        (r"\boxed{1} and \boxed{-2}", "1, -2"),  # boxes side by side are one list
        (r"$\boxed{3}$, $\boxed{5}$, $\boxed{7}$", "3, 5, 7"),
        (r"\boxed{4}. \boxed{4}", "4"),
        (r"\boxed 5", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{3} never closed: \boxed{\frac{1}{2}", "3"),
        (r"<think>\boxed{1}</think> The answer is 2.", "2"),  # a thought is no answer
        (r"<think>\boxed{1}</think>", "1"),  # unless nothing else was said
        (r"\boxed{9} <answer>\boxed{8}</answer>", "8"),
        ("<answer> 12 </answer>", "12"),
        ("9 * 2 = 18\n#### 18", "18"),
        ("The answer is 18. I checked it 3 times.", "18"),
        ("The answer is 3.5.", "3.5"),
        ("Answer: $-\\frac{3}{4}$", r"-\frac{3}{4}"),
        ("**Answer:** 12 apples", "12 apples"),
        ("the final answer is $4$ because $2+2=4$.", "4"),
        ("The answer is $12$ meters.", "12 meters"),
        ("First, answer 5: no. The final answer to the question is 6.", "6"),
        ("We get $x = 3$, so $y = 4$", "y = 4"),
        ("8 + 2 = 10", "10"),
        ("x = 5", "5"),
        ("3/4", "3/4"),
        ("She pays $1,234.50 in all.", "$1,234.50"),
        ("From 20 to 35: that is 15 more", "15"),
        ("blue", "blue"),
        ("", None),
        ("   \n", None),
    ],
)
def test_the_answer_is_found(response, answer):
    assert final_answer(response) == answer


def test_braces_of_boxes_are_matched():
    text = r"\boxed{\text{a} \} } then \fbox{\boxed{2}} and \boxed{"
    assert boxed(text) == [r"\text{a} \} ", r"\boxed{2}"]


@pytest.mark.parametrize(
    "text",
    ["\\boxed{", "{", "$", "answer is ", "1", "\\(", "\\[", "$$a", "\\$", "$\\a", "<answer>", "1,", "a ", "\n"],
)
def test_hostile_text_takes_no_time(text):
    started = time.process_time()
    final_answer(text * 50_000)
    assert time.process_time() - started < 4
