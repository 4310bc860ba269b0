"""tools/score.py as a user calls it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    {"response": "It is \\boxed{0.5}.", "solutions": ["1/3", "\\frac{1}{2}"], "level": 3},
    {"response": "It is 12.", "solutions": ["11"]},
    {"response": "The answer is 12 apples.", "answer": "12"},
]


def score(*arguments, text=None):
    command = [sys.executable, "-P", str(ROOT / "tools" / "score.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True, timeout=500)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_lines_come_back_with_their_scores(file, tmp_path):
    done = score("--task", "math", file)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        row | {"score": value} for row, value in zip(ROWS, (1.0, 0.0, 1.0), strict=True)
    ]
    assert "2 of 3 right" in done.stderr
    written = score("--task", "math", file, "--out", tmp_path / "scored.jsonl", "--explain")
    assert written.stdout == "" and written.returncode == 0
    first = json.loads((tmp_path / "scored.jsonl").read_text().splitlines()[0])
    assert first["score"] == 1 and first["note"] == "said '0.5'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"solutions": ["1"]}', "error: stdin:1: field 'response' must be there, as text."),
        (
            '{"response": "1", "solutions": ["1"]}\n{"response": "1", "solutions": 1}',
            "stdin:2: field 'solutions' must be",
        ),
        ("{'response'", "error: stdin:1: not JSON"),
        ("", "the file has no lines"),
    ],
)
def test_bad_lines_are_named(text, message):
    done = score("--task", "exact_match", "-", text=text)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr and not done.stdout


def test_what_it_cannot_do_is_said(file):
    for arguments, message in (
        (["--task", "maths", file], "error: no verifier is called 'maths'; there are exact_match,"),
        (["--task", "http", file], "error: --task http needs --url"),
        (["--task", "math", "/no/where"], "error: FILE=/no/where: no such file."),
        (["--task", "math"], "FILE and --task are needed"),
    ):
        done = score(*arguments)
        assert done.returncode and message in done.stderr and "Traceback" not in done.stderr


def test_the_verifiers_are_listed():
    done = score("--list")
    assert done.returncode == 0 and "\nmath " in done.stdout and "sandbox of code: namespaces" in done.stdout
