import pytest
from problems import problem

from areal_mega.rewards.choice import choice


@pytest.mark.parametrize(
    ("response", "value"),
    [
        (r"\boxed{C}", 1), (r"\boxed{(C)}", 1), (r"\boxed{\text{C}}", 1), (r"\boxed{c}", 1), (r"\boxed{C. red}", 1),
        (r"\boxed{red}", 1), (r"\boxed{B}", 0), (r"\boxed{green}", 0), (r"\boxed{C. green}", 0), (r"\boxed{A, C}", 0),
        ("The answer is C.", 1), ("The correct answer is (C), since A is blue.", 1), ("Answer: **C**", 1),
        ("I first thought the answer is A. The answer is C.", 1), ("The answer is C. No, the answer is A.", 0),
        ("C", 1), ("(C)\n", 1), ("Colour theory says so.\n\nC.", 1), ("B", 0), ("A day", 0), ("<think>C</think>\nA", 0),
        ("Cats are red", 0), ("", 0),
    ],
)  # fmt: skip
def test_choices(response, value):
    assert choice(response, problem("C", choices=["blue", "green", "red", "pink"])).value == value


def test_without_texts_the_letter_counts():
    assert choice(r"\boxed{C. anything}", problem("C")).value == 1
    assert choice(r"\boxed{D}", problem("(C)", "D")).value == 1
