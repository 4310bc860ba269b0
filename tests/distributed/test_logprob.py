"""A vocabulary cut over real ranks, with gloo, gives what one rank with all of it gives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("logprob_worker.py")


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_agree_with_a_single_one(ranks: int, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*launch, WORKER, tmp_path], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-6000:]
    results = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(ranks)]
    for result in (each.pop("compiled") for each in results):
        assert torch.equal(result["compiled"], result["outputs"])
    for case, first in results[0].items():
        for result in (each[case] for each in results):
            assert torch.equal(result["outputs"], first["outputs"]), case
            # Temperature scales logits of 10,000 in float32: what is lost there is the bound for row 1.
            exact = "float64" in case
            tolerance = torch.full((12,), 1e-12 if exact else 2e-6)
            tolerance[1] = 1e-9 if exact else 4e-3
            outputs_off = (result["outputs"] - result["alone"]).abs() / (1 + result["alone"].abs())
            assert (outputs_off <= tolerance).all(), case
            rounding = torch.finfo(result["grad"].dtype).eps if "bfloat16" in case else 0.0
            grad_off = (result["grad"] - result["grad alone"]).abs().float()
            bound = tolerance[:, None] * 50 + rounding * result["grad alone"].abs().float()
            assert (grad_off <= bound).all(), case
            assert result["grad"][3].eq(0).all(), case
