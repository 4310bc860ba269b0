import json

import pytest
from problems import problem

from areal_mega.rewards.code import code

DOUBLE = {"inputs": ["1\n", "5\n"], "outputs": ["2", "10\n"]}
ADD = {"inputs": [[1, 2], [3, 4]], "outputs": [3, 7], "fn_name": "add"}
LIMIT = {"time_limit": 60}


def judged(program, tests, **metadata):
    tests = {"input_output": tests} if isinstance(tests, (dict, str)) else {}
    return code(f"So:\n```python\n{program}\n```\n", problem("", **{**LIMIT, **tests, **metadata}))


@pytest.mark.parametrize(
    ("program", "tests", "value", "passed"),
    [
        ("print(2 * int(input()))", DOUBLE, 1, 1),
        ("print(2 * int(input()))", json.dumps(DOUBLE), 1, 1),
        ("print(2)", DOUBLE, 0, 0.5),
        ("print(2 * int(input()), 'or so')", DOUBLE, 0, 0),
        ("print('2')\nraise SystemExit(1)", DOUBLE, 0, 0),
        ("def add(a, b):\n    print('noise')\n    return a + b", ADD, 1, 1),
        ("class Solution:\n    def add(self, a, b):\n        return a + b", ADD, 1, 1),
        ("def add(a, b):\n    return 3", ADD, 0, 0.5),
        ("def add(a, b):\n    return str(a + b)", ADD, 0, 0),
        ("def add(a, b):\n    raise ValueError", ADD, 0, 0),
        ("def other(a, b):\n    return a + b", ADD, 0, 0),
        ("def add(a, b: return", ADD, 0, 0),
        ("def add(a, b):\n    return a + b", ADD | {"inputs": ["1\n2", "3\n4"]}, 1, 1),
        ("def add(a, b):\n    return [a + b]", ADD | {"outputs": [[3], [7]]}, 1, 1),
        ("def add(a, b):\n    return a + b + 1e-9", ADD | {"outputs": [3.0, 7.0]}, 1, 1),
        ("def add(a, b):\n    return a + b + 0.1", ADD | {"outputs": [3.0, 7.0]}, 0, 0),
        # The expected values never enter the sandbox, so a program that writes what it likes wins nothing.
        ("import os\ndef add(a, b):\n    os.write(3, b'1\\n1\\n')\n    os._exit(0)", ADD, 0, 0),
    ],
)  # fmt: skip
def test_programs(program, tests, value, passed):
    score = judged(program, tests)
    assert score.value == value, score
    if passed is not None:
        assert score.parts["tests_passed"] == passed


TEST = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 9\n"


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("def square(x):\n    return x * x", 1),
        ("def square(x):\n    return 4", 0),
        ("import sys\nsys.exit(0)", 0),
        ("import os\nos._exit(0)", 0),
        ("def square(x):\n    return AlwaysEqual()", 0),
    ],
)
def test_assertions(program, value):
    assert judged(program, None, test=TEST, entry_point="square").value == value


def test_the_last_python_block_counts():
    right, wrong = "```python\nprint(2 * int(input()))\n```", "```python\nprint(0)\n```"
    prompt = problem("", input_output=DOUBLE, **LIMIT)
    assert code(f"{wrong}\nBetter:\n{right}\n```bash\nls\n```", prompt).value == 1
    assert code(f"{right}\nor\n{wrong}", prompt).value == 0
    assert code("print(2 * int(input()))", prompt).note == "no code block"


def test_a_slow_program_is_told_so():
    assert "not done in time" in judged("while True: pass", DOUBLE, time_limit=1).note


@pytest.mark.parametrize("tests", [{}, {"inputs": [], "outputs": []}, {"inputs": ["1"], "outputs": []}, "[1]"])
def test_a_problem_without_tests_is_an_error(tests):
    with pytest.raises(ValueError, match="no test cases"):
        judged("print(1)", tests)
