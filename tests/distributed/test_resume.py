"""A checkpoint of every layout goes on under every other, with the same losses.

That is 90 pairs of dense models and 42 of each mixture; by default each layout resumes from one other. All of them:
AREAL_MEGA_ALL_PAIRS=1 python -m pytest tests/distributed/test_resume.py
"""

import json
import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest
from distributed.layouts import LAYOUTS
from models import save_tiny_model

WORKER = Path(__file__).with_name("resume_worker.py")
# Layouts of the parity table. The dense run trains a policy and a critic, of two families.
DENSE = (
    "TP1", "TP2", "PP2", "PP2xVPP2", "CP2", "DP2", "TP4 with 2 KV heads", "PP4", "TP2xPP2+SP", "TP2xCP2",
)  # fmt: skip
MIXTURE = ("TP2+SP", "PP2", "DP2", "EP2", "ETP2", "TP2xEP2", "EP2xPP2")
RUNS = {
    "dense": (DENSE, {"policy": "qwen3", "critic": "llama"}),
    "qwen3_moe": (MIXTURE, {"policy": "qwen3_moe"}),
    "mixtral": (MIXTURE, {"policy": "mixtral"}),
    "deepseek_v3": (MIXTURE, {"policy": "deepseek_v3"}),
}
# Relative. A gradient norm sums squares in the order of the layout.
BOUNDS = {"loss": 1e-6, "grad_norm": 1e-5}


def pairs(layouts):
    """(of the checkpoint, of the run that goes on)."""
    if os.environ.get("AREAL_MEGA_ALL_PAIRS"):
        return list(permutations(layouts, 2))
    n = len(layouts)
    return [(layouts[(i + n // 2) % n], layouts[i]) for i in range(n)]


PAIRS = [(run, a, b) for run, (layouts, _) in RUNS.items() for a, b in pairs(layouts)]


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """By run and pair: how the run of the checkpoint went on, and the resumed one. One start a number of ranks."""
    folder = tmp_path_factory.mktemp("resume")
    for family in {family for _, models in RUNS.values() for family in models.values()}:
        save_tiny_model(folder / family, family)
    work = [{"run": run, "models": RUNS[run][1], "saved": a, "resumed": b} for run, a, b in PAIRS]
    (folder / "work.json").write_text(json.dumps(work))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    starts = {}
    for ranks in sorted({LAYOUTS[name].ranks for layouts, _ in RUNS.values() for name in layouts}):
        command = [*launch, f"--nproc-per-node={ranks}", str(WORKER), str(folder)]
        with open(folder / f"log-{ranks}", "wb") as log:
            starts[ranks] = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    found = []
    try:
        for ranks, process in starts.items():
            assert process.wait(1500) == 0, (folder / f"log-{ranks}").read_text()[-6000:]
            found += json.loads((folder / f"losses-{ranks}.json").read_text())
    finally:
        for process in starts.values():
            process.terminate()
    return {(f["run"], f["saved"], f["resumed"]): (f["went_on"], f["went_on_resumed"]) for f in found}


@pytest.mark.distributed
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("run", "saved", "resumed"), PAIRS)
def test_a_checkpoint_goes_on_under_another_layout(losses, run, saved, resumed):
    theirs, ours = losses[run, saved, resumed]
    assert len(theirs) == len(ours) == 3
    for expected, found in zip(theirs, ours, strict=True):
        assert expected.keys() == found.keys() and len(found) == 2 * len(RUNS[run][1])
        for name, value in found.items():
            assert value == pytest.approx(expected[name], rel=BOUNDS[name.split()[1]]), name
