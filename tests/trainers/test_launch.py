"""How a program ends: its exit status and what it says."""

import os
import subprocess
import sys

import pytest

CODE = """
import sys
from areal_mega.config.errors import UserError
from areal_mega.trainers import launch

def fail(*_):
    raise {error}

launch.OTHER_RANKS_WAIT = 0
launch._run = fail
launch.launch("ppo", None, [])
"""


def run(code, *arguments, rank=0):
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"}
    return subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("error", "rank", "status", "message"),
    [
        ("UserError('use another')", 0, 1, "error: use another"),
        ("UserError('use another')", 1, 1, "[rank 1] \nerror: use another"),
        ("KeyboardInterrupt", 0, 130, "interrupted"),
        ("ArithmeticError('deep')", 1, 1, "[rank 1] Traceback"),
    ],
)
def test_an_error_ends_the_rank_with_a_status(error, rank, status, message):
    ended = run(CODE.format(error=error), rank=rank)
    assert ended.returncode == status
    assert message in ended.stderr
    assert ("Traceback" in ended.stderr) is ("Arithmetic" in error)


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_main_rank_lists_the_experiments(rank):
    ended = run("from areal_mega.trainers.launch import launch; launch('ppo', None)", "--list", rank=rank)
    assert ended.returncode == 0
    assert ("quickstart-grpo" in ended.stdout) is (rank == 0)


def test_a_wrong_option_ends_without_a_traceback():
    code = "from areal_mega.trainers.launch import launch; launch('ppo', None)"
    ended = run(code, "+experiment=quickstart", "rollout.temprature=1")
    assert ended.returncode == 1
    assert "Did you mean rollout.temperature?" in ended.stderr
    assert "Traceback" not in ended.stderr
