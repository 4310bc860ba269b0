"""Every layout against transformers in a single process, on real ranks with gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from distributed.layouts import LAYOUTS

WORKER = Path(__file__).with_name("parity_worker.py")
# Log-probs and values: absolute. Gradients: relative to each tensor's largest element. Weights after
# optimizer steps: relative to the largest change. The rest: relative.
BOUNDS = {
    "export, differing elements": 0,
    "saved, differing elements": 0,
    "reloaded critic": 0,
    "tokens": 0,
    "critic tokens": 0,
    "logprobs": 2e-6,
    "entropy": 4e-6,
    "values": 2e-6,
    "gradients": 3e-6,
    "critic gradients": 3e-6,
    "loss": 1e-5,
    "grad_norm": 1e-5,
    "critic loss": 1e-5,
    "critic grad_norm": 1e-5,
    "micro-batch split, loss": 1e-5,
    "micro-batch split, grad_norm": 1e-5,
    "weights after steps": 1e-4,
    "learning rate": 1e-12,
}


OF_THE_POLICY = {"export, differing elements", "logprobs", "entropy", "gradients", "loss", "grad_norm", "tokens"}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The deviations of all layouts of a number of ranks, measured in one start of them."""
    known: dict[int, dict] = {}

    def of(ranks: int) -> dict:
        if ranks not in known:
            known[ranks] = measure(ranks, tmp_path_factory.mktemp("parity") / "parity.json")
            record(known[ranks])
        return known[ranks]

    return of


@pytest.mark.distributed
@pytest.mark.timeout(900)  # the first test of a number of ranks measures all layouts of it
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_computes_what_transformers_computes(layout, measured):
    families = LAYOUTS[layout].families
    found = measured(LAYOUTS[layout].ranks)[layout]
    assert tuple(found) == families
    assert set(found[families[0]]) == set(BOUNDS)
    assert all(set(checks) >= OF_THE_POLICY for checks in found.values())
    too_large = {
        (family, check): value
        for family, checks in found.items()
        for check, value in checks.items()
        if not value <= BOUNDS[check]
    }
    assert not too_large


def measure(ranks: int, out: Path) -> dict[str, dict[str, dict[str, float]]]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*launch, str(WORKER), str(out), str(ranks)], env=environment, capture_output=True, text=True, timeout=850
    )
    assert run.returncode == 0, run.stderr[-6000:]
    return json.loads(out.read_text())


def record(measured: dict[str, dict]) -> None:
    """Add to the file named by AREAL_MEGA_PARITY_OUT, if it is set."""
    if path := os.environ.get("AREAL_MEGA_PARITY_OUT"):
        file = Path(path)
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**known, **measured}, indent=2) + "\n")
