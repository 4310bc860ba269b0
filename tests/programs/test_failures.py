"""What goes wrong ends the run with a clear message, a non-zero status, and nothing left behind."""

import os
import signal
import socket
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = [pytest.mark.distributed]


def fails_with(program, *messages):
    assert program.wait() != 0
    program.assert_nothing_left()
    for message in messages:
        assert message in program.output, program.output


def test_contradictory_options_stop_before_anything_starts(start, ppo_arguments, tmp_path):
    program = start("tools/train_ppo.py", *ppo_arguments("algorithm.kl_coef=0.1", "rollout.top_p=0.9"))
    fails_with(program, "error: These options cannot be used", "algorithm.use_reference=true", "rollout.top_p=0.9")
    assert program.output.count("error: These options") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.engine
def test_missing_model_folder(start, ppo_arguments, tmp_path):
    program = start("tools/train_ppo.py", *ppo_arguments("model.path=/no/model"))
    fails_with(program, "error: /no/model/config.json does not exist; model.path")
    assert not (tmp_path / "out" / "latest" / "engine.log").exists()


@pytest.mark.engine
def test_broken_data_line(start, ppo_arguments, tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "1+2="}\n')
    program = start("tools/train_ppo.py", *ppo_arguments(f"data.train={path}"))
    fails_with(program, f"error: {path}:2: field 'answer' is missing")


@pytest.mark.engine
def test_port_taken(start, ppo_arguments):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        program = start("tools/train_ppo.py", *ppo_arguments(f"rollout.port={port}"))
        fails_with(program, f"error: rollout.port={port} is taken")


@pytest.mark.engine
def test_engine_that_dies_at_start_shows_its_last_words(start, ppo_arguments):
    program = start("tools/train_ppo.py", *ppo_arguments("+rollout.sglang.load_format=nonsense"))
    fails_with(program, "error: The SGLang engine died at start", "nonsense", "engine.log")


@pytest.mark.engine
def test_a_rank_that_raises_stops_all_ranks_and_the_engine(start, ppo_arguments):
    program = start(HERE / "raise_on_rank.py", *ppo_arguments("runtime.timeout=20"))
    fails_with(program, "engine is up", "[rank 1]", "ArithmeticError: this rank cannot go on")


@pytest.mark.engine
@pytest.mark.parametrize("when", ["engine starts", "training", "training, started by a tool"])
def test_ctrl_c_leaves_nothing_running(start, ppo_arguments, tmp_path, when):
    arguments = ppo_arguments("steps=100000", "evaluation.every=0")
    if when == "training, started by a tool":
        program = start(HERE / "through_torchrun.py", *arguments, ranks=None)
    else:
        program = start("tools/train_ppo.py", *arguments)
    log = tmp_path / "out" / "latest" / "engine.log"
    program.wait_for(log.exists if when == "engine starts" else lambda: "step 1/" in program.output)
    program.wait_for(lambda: len(program.family()) >= 5)  # torchrun, two ranks, guard and engine
    os.killpg(program.process.pid, signal.SIGINT)
    assert program.wait(60) != 0
    program.assert_nothing_left()
