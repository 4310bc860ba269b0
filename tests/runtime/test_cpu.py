"""The CPU layer: what it rewrites, and that Megatron asks its stand-in for nothing it lacks."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from areal_mega.runtime import cpu, cuda_on_cpu


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x.to('cuda')", "x.to('cpu')"),
        ("torch.cuda.synchronize()", "__cuda_on_cpu__.synchronize()"),
        ("x.cuda(non_blocking=True) + 1", "x + 1"),
        ("torch.empty(2, pin_memory=True)", "torch.empty(2, pin_memory=False)"),
        ("y = x.is_cuda", "y = True"),
        ("assert x.type() == 'torch.cuda.FloatTensor'", "assert x.type() == 'torch.FloatTensor'"),
        ("from torch.cuda import Stream", "from areal_mega.runtime.cuda_on_cpu import Stream"),
        ("text = 'a cuda kernel'", "text = 'a cuda kernel'"),
    ],
)
def test_rewriting(source, expected):
    *head, last = cpu.rewrite(source.encode(), "module.py").body
    assert [ast.unparse(node) for node in head] == ["import areal_mega.runtime.cuda_on_cpu as __cuda_on_cpu__"]
    assert ast.unparse(last) == expected


def test_docstring_and_future_imports_stay_first():
    tree = cpu.rewrite(b'"""doc"""\nfrom __future__ import annotations\ntorch.cuda.Stream\n', "module.py")
    assert ast.get_docstring(tree) == "doc"
    assert isinstance(tree.body[2], ast.Import)
    assert tree.body[-1].lineno == 3
    compile(tree, "module.py", "exec")


def test_every_name_that_megatron_takes_from_torch_cuda_exists():
    root = Path(importlib.util.find_spec("megatron.core").submodule_search_locations[0])
    names = {
        (node.attr, str(path.relative_to(root)))
        for path in root.rglob("*.py")
        if b"cuda" in (source := path.read_bytes())
        for node in ast.walk(cpu.rewrite(source, str(path)))
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "__cuda_on_cpu__"
    }
    assert len(names) > 50
    assert {name for name in names if not hasattr(cuda_on_cpu, name[0])} == set()


def test_enabling_too_late_is_refused():
    code = (
        "import sys, types; sys.modules['megatron.core'] = types.ModuleType('megatron.core')\n"
        "from areal_mega.runtime import cpu; cpu.enable()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "RuntimeError: megatron.core was imported before the CPU layer" in run.stderr
