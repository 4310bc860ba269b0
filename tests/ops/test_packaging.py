"""What the installed package must look like from outside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from areal_mega import _C


def run_elsewhere(folder: Path, code: str) -> str:
    """Output of Python code that runs in a foreign working directory."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_triton_kernels_are_only_seen_inside_the_package(tmp_path: Path) -> None:
    code = (
        "import areal_mega.triton_kernels, importlib.util as u; "
        "spec = u.find_spec('triton_kernels'); print(spec and spec.origin)"
    )
    ours = str(Path(__file__).resolve().parents[2])
    assert not run_elsewhere(tmp_path, code).startswith(ours)


def test_triton_kernels_refuse_the_name_of_the_foreign_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2])
    monkeypatch.delitem(sys.modules, "triton_kernels", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"areal_mega\.triton_kernels"):
        __import__("triton_kernels")


def test_compiled_module_does_not_link_torch() -> None:
    libraries = subprocess.run(["ldd", _C.__file__], check=True, capture_output=True, text=True).stdout
    assert "libgomp" in libraries
    assert "torch" not in libraries
    assert "libc10" not in libraries


def test_operations_import_neither_megatron_nor_sglang_nor_hydra_nor_triton(tmp_path: Path) -> None:
    code = "import sys, areal_mega.ops; print({'megatron', 'sglang', 'hydra', 'triton'} & set(sys.modules))"
    assert run_elsewhere(tmp_path, code) == "set()"


def test_torch_and_the_compiled_module_share_one_openmp_runtime(tmp_path: Path) -> None:
    code = (
        "from areal_mega import ops; import torch; x = torch.zeros(2**16); "
        "ops.gae(x, x, torch.tensor([0, 2**16]), 1.0, 1.0); "
        "print(len({line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line}))"
    )
    assert run_elsewhere(tmp_path, code) == "1"
