"""Starts that fail, and ends: nothing of an engine is left."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import psutil
import pytest
from engine.conftest import EOS
from engine.oracles import make_prompts

from areal_mega.config.errors import UserError
from areal_mega.rollout.local_engines import LocalEngines
from areal_mega.rollout.sampler import Sampler
from areal_mega.rollout.server import EngineError, SGLangServer

pytestmark = pytest.mark.engine


def start(folder, options, log):
    return SGLangServer(str(folder), options, dtype="float32", device="cpu", seed=1, log_path=log)


def test_a_taken_port_is_named(model_folder, start_model, options, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"rollout\.port={port} is taken.*rollout\.port=0"):
            start(model_folder, replace(options, port=port), tmp_path / "log")


def test_failed_starts_say_why(model_folder, start_model, options, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((model_folder / "config.json").read_text())
    without_weights = start(broken, options, tmp_path / "broken.log")
    misspelt = start(model_folder, replace(options, sglang={"max_total_token": 8}), tmp_path / "misspelt.log")

    with pytest.raises(UserError, match=r"(?s)died at start.*broken\.log.*safetensors"):
        without_weights.wait_ready()
    with pytest.raises(UserError, match=r"rollout\.sglang\.max_total_token: .*did you mean max_total_tokens"):
        misspelt.wait_ready()


def test_the_sampler_reports_a_start_that_takes_too_long(model_folder, start_model, options, tokenizer, tmp_path):
    slow = start(model_folder, replace(options, start_timeout=0.5), tmp_path / "slow.log")
    with pytest.raises(UserError, match=r"rollout\.start_timeout=0\.5 seconds"):
        Sampler(LocalEngines([slow]), tokenizer, options, [EOS]).generate(make_prompts([3]), samples=1, temperature=1.0)


TRAINER = """
    import sys, time
    from areal_mega.config.options import RolloutOptions
    from areal_mega.rollout.server import SGLangServer
    options = RolloutOptions(prompts_per_step=1, samples_per_prompt=1, max_prompt_tokens=8, max_new_tokens=8)
    server = SGLangServer(sys.argv[1], options, dtype="float32", device="cpu", seed=1, log_path=sys.argv[2])
    server.wait_ready()
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_killed_trainer_leaves_no_engine(model_folder, start_model, tmp_path):
    trainer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(TRAINER), str(model_folder), str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert trainer.stdout.readline() == "ready\n"
        processes = psutil.Process(trainer.pid).children(recursive=True)
        assert len(processes) >= 4  # guard, server, scheduler, detokenizer
    finally:
        os.killpg(trainer.pid, signal.SIGKILL)
        trainer.wait()

    _gone, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive


def test_close_is_quick_and_may_be_repeated(model_folder, start_model, options, tmp_path):
    server = start(model_folder, options, tmp_path / "log")
    started = time.monotonic()
    server.close()
    server.close()

    assert time.monotonic() - started < 5
    with pytest.raises(EngineError, match="closed"):
        server.check()
