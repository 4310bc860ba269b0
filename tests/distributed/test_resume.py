"""A checkpoint of every layout goes on under every other, with the same losses."""

import json
import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest
from models import save_tiny_model

WORKER = Path(__file__).with_name("resume_worker.py")
LAYOUTS = {
    "TP1": (1, 1, 1),
    "TP2": (2, 2, 1),
    "PP2": (2, 1, 2),
    "DP2": (2, 1, 1),
    "TP2xPP2": (4, 2, 2),
    "TP2xDP2": (4, 2, 1),
}  # ranks, tensor, pipeline
# Relative. A gradient norm sums squares in the order of the layout.
BOUNDS = {"loss": 1e-6, "grad_norm": 1e-5}


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """By pair: how the run of the checkpoint went on, and the resumed one. One start for each number of ranks."""
    folder = tmp_path_factory.mktemp("resume")
    for family in ("qwen3", "llama"):
        save_tiny_model(folder / family, family)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    starts = {}
    for ranks in sorted({n for n, _, _ in LAYOUTS.values()}):
        command = [*launch, f"--nproc-per-node={ranks}", str(WORKER), str(folder), str(ranks), json.dumps(LAYOUTS)]
        with open(folder / f"log-{ranks}", "wb") as log:
            starts[ranks] = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    found = {}
    try:
        for ranks, process in starts.items():
            assert process.wait(550) == 0, (folder / f"log-{ranks}").read_text()[-6000:]
            found |= json.loads((folder / f"losses-{ranks}.json").read_text())
    finally:
        for process in starts.values():
            process.terminate()
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("pair", [f"{a} -> {b}" for a, b in permutations(LAYOUTS, 2)])
def test_a_checkpoint_goes_on_under_another_layout(losses, pair):
    went_on, resumed = losses[pair]
    assert len(went_on) == len(resumed) == 3
    for theirs, ours in zip(went_on, resumed, strict=True):
        assert theirs.keys() == ours.keys() and len(ours) == 4
        for name, value in ours.items():
            assert value == pytest.approx(theirs[name], rel=BOUNDS[name.split()[1]]), (pair, name)
