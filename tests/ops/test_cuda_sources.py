"""The CUDA sources compile for every GPU we build for, without a warning, and keep all they need in registers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).resolve().parents[2] / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ["80", "90", "100"]

STRICT = ["-Werror", "all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror"]


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc, the CUDA compiler, is not installed")
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_compiles_without_warnings_and_spills(source: Path, tmp_path: Path) -> None:
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    command = ["nvcc", "-std=c++17", "-O3", *STRICT, "-Xptxas=-v", *targets, "-c", source, "-o", tmp_path / "object.o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", done.stderr)
    assert {arch for _, arch in kernels} == set(ARCHITECTURES)
    usage = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(usage) == len(kernels)
    assert set(usage) == {("0", "0", "0")}
