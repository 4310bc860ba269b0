"""What is special about the Triton kernels; that they are right, the tests of each operation say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from kernels import Kernel, each_kernel_of, kernels_of
from ops.policy_loss_oracle import problem
from torch import Tensor

from areal_mega import ops
from areal_mega.ops import PolicyLossOptions
from areal_mega.ops.backend import interpreting

needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
WORKER = Path(__file__).with_name("triton_compile_worker.py")
FULL = PolicyLossOptions(dual_clip=2.0, behavior="sequence", behavior_high=1.5, kl_coef=0.3, entropy_coef=0.1)


def everything(backend: str = "", **inputs: Tensor) -> tuple[Tensor, ...]:
    """The losses of the tokens and their gradients, and log-probs of their advantages taken for logits."""
    x = inputs["logprobs"]
    rows = inputs["advantages"].expand(3, -1) * torch.tensor([[1.0], [20.0], [-3.0]], dtype=x.dtype, device=x.device)
    logprobs = ops.logprob_from_logits(rows.contiguous(), inputs["targets"], temperature=0.7, backend=backend)
    of_value = {k: inputs[k] for k in ("loss_mask", "loss_weight")} | {"old_values": x, "returns": inputs["entropy"]}
    value = ops.value_loss(inputs["proximal_logprobs"], **of_value, clip=0.2, backend=backend)
    named = {k: v for k, v in inputs.items() if k != "targets"}
    return *logprobs, *value, *ops.policy_loss_and_gradients(**named, options=FULL, backend=backend)


KERNELS = kernels_of(everything, "cpp", "triton")
each_triton = each_kernel_of({name: kernel for name, kernel in KERNELS.items() if name.endswith("triton")})


def inputs_of(dtype: torch.dtype) -> dict[str, Tensor]:
    inputs = problem([700, 0, 1, 1500, 99], 0)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    return {**inputs, "targets": torch.tensor([0, 2299, 1024])}


@each_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_the_kernels_of_the_cpu(kernel: Kernel, dtype: torch.dtype) -> None:
    inputs = inputs_of(dtype)
    expected = next(k for name, k in KERNELS.items() if name.startswith("cpp"))(**inputs)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    for a, e in zip(kernel(**inputs), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance * e.abs().max().item())


@each_triton
def test_runs_repeat_bitwise(kernel: Kernel) -> None:
    inputs = inputs_of(torch.float32)
    once = kernel(**inputs)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(kernel(**inputs), once, strict=True))


# How often a kernel is compiled for one dtype and many lengths and temperatures: once, or for each use of an option.
VARIANTS = {"_policy_loss": 2, "_share_over_sequence": 2}

# Loads of 16 bytes that each thread starts with.
VECTORS = {"_sum_chunks": 4, "_write_gradient": 2, "_policy_loss": 14, "_value_loss": 8}


@needs_triton
@pytest.mark.parametrize("architecture", [80, 90])
def test_compiles_for_a_gpu(architecture: int, tmp_path: Path) -> None:
    """Once for all lengths, with wide loads, and with all that a thread holds in registers."""
    out = tmp_path / "kernels.json"
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-P", str(WORKER), str(architecture), str(out)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-6000:]
    compiled = json.loads(out.read_text())
    assert len(compiled) == 3 * 3 + 4 * 2
    for name, variants in compiled.items():
        kernel = name.split()[0]
        assert len(variants) == VARIANTS.get(kernel, 1), name
        for variant in variants:
            assert variant["stack"] == variant["local"] == 0, (name, variant)
            assert variant["vectors"] >= VECTORS.get(kernel, 0), (name, variant)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, nothing is interpreted")
def test_children_do_not_inherit_the_interpreter() -> None:
    code = "import triton; from areal_mega.ops.backend import interpreting; print(interpreting())"
    run = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True)
    assert interpreting()
    assert run.stdout.strip() == "False"
