"""Every layout against transformers in a single process, on real ranks with gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("parity_worker.py")
LAYOUTS = {
    "TP1": (1, 1, 1),
    "TP2": (2, 2, 1),
    "PP2": (2, 1, 2),
    "TP2xPP2": (4, 2, 2),
    "DP2": (2, 1, 1),
    "TP2xDP2": (4, 2, 1),
    "DP2xPP2": (4, 1, 2),
}  # ranks, tensor, pipeline
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


@pytest.mark.distributed
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_computes_what_transformers_computes(layout, tmp_path):
    measured = measure(*LAYOUTS[layout], tmp_path / "parity.json")
    record(layout, measured)
    assert {family: set(found) for family, found in measured.items()} == {
        family: set(BOUNDS) for family in ("qwen3", "qwen2", "llama")
    }
    too_large = {
        (family, check): value
        for family, found in measured.items()
        for check, value in found.items()
        if not value <= BOUNDS[check]
    }
    assert not too_large


def measure(ranks: int, tensor: int, pipeline: int, out: Path) -> dict[str, dict[str, float]]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*launch, str(WORKER), str(out), str(tensor), str(pipeline)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-6000:]
    return json.loads(out.read_text())


def record(layout: str, measured: dict[str, dict[str, float]]) -> None:
    """Add to the file named by AREAL_MEGA_PARITY_OUT, if it is set."""
    if path := os.environ.get("AREAL_MEGA_PARITY_OUT"):
        file = Path(path)
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**known, layout: measured}, indent=2) + "\n")
