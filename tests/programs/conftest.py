"""Whole programs as a user starts them: real torchrun, real Megatron, real SGLang, a very small model."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import pytest
from models import save_tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A random Qwen3 with a tokenizer of single characters."""
    folder = tmp_path_factory.mktemp("model")
    symbols = ["<end>", "<user>", "<assistant>", *"0123456789+-= "]
    characters = Tokenizer(models.WordLevel({s: i for i, s in enumerate(symbols)}, "<end>"))
    characters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    characters.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=characters,
        eos_token="<end>",
        chat_template="{% for m in messages %}{{ '<user>' + m['content'] }}{% endfor %}<assistant>",
        additional_special_tokens=["<user>", "<assistant>"],
    ).save_pretrained(folder)
    save_tiny_model(folder, "qwen3", vocab_size=len(symbols), eos_token_id=0, bos_token_id=None)
    return folder


@pytest.fixture(scope="session")
def data_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    lines = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(8) for b in range(8)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def ppo_arguments(model_folder, data_file, tmp_path):
    """Two steps of the quickstart with the small model; the run directories go to ``tmp_path / "out"``."""

    def arguments(*more):
        return [
            "+experiment=quickstart",
            f"model.path={model_folder}",
            f"data.train={data_file}",
            f"data.validation={data_file}",
            f"output={tmp_path / 'out'}",
            "steps=2",
            "critic.warmup_steps=0",
            "rollout.prompts_per_step=4",
            "rollout.samples_per_prompt=4",
            "rollout.max_new_tokens=6",
            "algorithm.mini_batches=2",
            "evaluation.every=1",
            *more,
        ]

    return arguments


class Program:
    """A started program; ``tag`` marks its whole family of processes through the environment."""

    def __init__(self, command, log):
        self.tag = uuid.uuid4().hex
        self.log = log
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "AREAL_MEGA_TEST_TAG": self.tag}
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def output(self):
        return self.log.read_text(errors="replace")

    def wait(self, timeout=300):
        return self.process.wait(timeout)

    def wait_for(self, condition, timeout=400):
        """Wait until ``condition()`` holds; the program must not end before."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.2)

    def family(self):
        """Process ids of everything this program started that still lives."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
                if state != "Z" and self.tag.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    def rank(self, number):
        """Process id of a rank."""
        for pid in self.family():
            names = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
            if f"RANK={number}".encode() in names and parent == self.process.pid:
                return pid
        raise AssertionError(f"no rank {number}")

    def assert_nothing_left(self, within=20.0):
        deadline = time.monotonic() + within
        while self.family():
            assert time.monotonic() < deadline, f"still running: {self.family()}\n{self.output}"
            time.sleep(0.2)


@pytest.fixture
def start(tmp_path):
    """Start a script under torchrun, or with ``ranks=None`` by itself; whatever is left at the end is killed."""
    programs = []

    def start(script, *arguments, ranks=2, restarts=0):
        launch = ["--standalone", f"--nproc-per-node={ranks}", f"--max-restarts={restarts}"]
        torchrun = ["-m", "torch.distributed.run", *launch] if ranks else []
        program = Program(
            [sys.executable, *torchrun, str(script), *map(str, arguments)], tmp_path / f"log-{len(programs)}.txt"
        )
        programs.append(program)
        return program

    yield start
    for program in programs:
        for pid in program.family():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
