"""Compiles the Triton kernels for a GPU that need not be there: python triton_compile_worker.py ARCHITECTURE OUT.json

The host functions run as they are, on tensors of the CPU and for many lengths; where they would launch a kernel it is
only compiled, for the arguments it would get. Written out for each kernel: the variants that were needed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime.jit import JITFunction, KernelInterface

from areal_mega.ops import PolicyLossOptions
from areal_mega.triton_kernels import logit_rows, policy_loss, token_blocks, value_loss

LENGTHS = (1, 2, 16, 17, 100, 128, 1023, 1024, 1025, 4096, 10_001)
VOCABULARY = 151_936
CUOBJDUMP = Path(nvidia.__file__).parent / "bin" / "cuobjdump"


class CompilerOnly:
    """What Triton asks a driver before it compiles."""

    def __init__(self, architecture: int) -> None:
        self._target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def rows_of_logits(dtype: torch.dtype) -> None:
    numbers = torch.promote_types(dtype, torch.float32)
    for rows in LENGTHS[:-2]:
        logits = torch.empty(rows, VOCABULARY, dtype=dtype)  # memory that is never touched
        targets, row = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=numbers)
        for temperature in (1.0, 0.7):
            logit_rows.statistics(logits, targets, VOCABULARY, temperature)
            logit_rows.gradient(logits, targets, VOCABULARY, temperature, row, row, row, row, logits)


def losses(dtype: torch.dtype) -> None:
    everything = PolicyLossOptions(dual_clip=3.0, behavior="token", behavior_high=2.0, kl_coef=0.1, entropy_coef=0.1)
    over_sequences = PolicyLossOptions(ratio="sequence", behavior="sequence-mean")
    for tokens in LENGTHS:
        x, mask = torch.zeros(tokens, dtype=dtype), torch.ones(tokens, dtype=torch.bool)
        bounds = torch.tensor([0, tokens], dtype=torch.int32)
        for options in (everything, over_sequences):
            policy_loss.policy_loss(x, x, x, x, mask, x, x, x, bounds, options)
        value_loss.value_loss(x, x, x, mask, x, 0.2)


def measured(kernel: triton.compiler.CompiledKernel) -> dict[str, object]:
    """vectors: loads of 16 bytes from memory. stack, local: bytes a thread puts where registers do not suffice."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    vectors = len(re.findall(r"ld\.global\S*\.(?:v4\.b32|v2\.b64)", kernel.asm["ptx"]))
    return {"registers": found["REG"], "stack": found["STACK"], "local": found["LOCAL"], "vectors": vectors}


def main(architecture: str, out: str) -> None:
    triton.runtime.driver.set_active(CompilerOnly(int(architecture)))
    KernelInterface.__getitem__ = lambda kernel, grid: lambda *a, **k: kernel.run(*a, grid=grid, warmup=True, **k)
    compiled = {}
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        rows_of_logits(dtype)
        compiled |= {f"{name} {dtype}": variants for name, variants in taken(logit_rows).items()}
    for dtype in (torch.float32, torch.float64):
        losses(dtype)
        for module in (policy_loss, value_loss, token_blocks):
            compiled |= {f"{name} {dtype}": variants for name, variants in taken(module).items()}
    Path(out).write_text(json.dumps(compiled))


def taken(module: object) -> dict[str, list[dict[str, object]]]:
    """By kernel: what was compiled since the last time."""
    kernels = {name: f for name, f in vars(module).items() if isinstance(f, JITFunction)}
    result = {}
    for name, kernel in kernels.items():
        cache = kernel.device_caches[0][0]
        if cache:
            result[name] = [measured(variant) for variant in cache.values()]
            cache.clear()
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
