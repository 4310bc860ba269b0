"""Megatron-Core on machines without a GPU.

Megatron-Core names CUDA devices in its source. `enable` installs an import hook that rewrites the syntax
tree of every ``megatron.core`` module while it loads, so that those names mean the CPU; torch itself and
all other packages stay as they are. On a GPU machine `enable` is simply not called.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import logging
import sys
from collections.abc import Callable
from types import CodeType, ModuleType

from areal_mega.runtime import uneven

PACKAGE = "megatron.core"
STAND_IN = "areal_mega.runtime.cuda_on_cpu"
_ALIAS = "__cuda_on_cpu__"
_TENSOR_TYPES = {f"torch.cuda.{t}Tensor": f"torch.{t}Tensor" for t in ("Float", "Half", "BFloat16", "Double")}
_RNG_WARNING = "CPU RNG state changed within GPU RNG context"


def enable() -> None:
    """Make the coming import of Megatron-Core run on the CPU. Calling it again does nothing.

    Raises:
        RuntimeError: Megatron-Core has been imported already, with CUDA devices.
    """
    if enabled():
        return
    loaded = next((name for name in sys.modules if _belongs(name)), None)
    if loaded:
        raise RuntimeError(
            f"{loaded} was imported before the CPU layer was enabled; call areal_mega.runtime.distributed."
            "initialize (or areal_mega.runtime.cpu.enable) before the first import of megatron"
        )
    sys.meta_path.insert(0, _Finder())


def enabled() -> bool:
    """Whether Megatron-Core runs on the CPU in this process."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def rewrite(source: bytes, path: str) -> ast.Module:
    """The syntax tree of a Megatron-Core module with its CUDA names turned to the CPU, lines as they were."""
    tree = _ToCpu().visit(ast.parse(source, path))
    stand_in = ast.Import([ast.alias(STAND_IN, _ALIAS)])
    tree.body.insert(_first_statement(tree), stand_in)
    return ast.fix_missing_locations(tree)


class _ToCpu(ast.NodeTransformer):
    """Device literals become "cpu", ``torch.cuda`` the stand-in, and moves to the device vanish."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if isinstance(node.value, str):
            if node.value == "cuda" or node.value.startswith("cuda:"):
                node.value = "cpu"
            node.value = _TENSOR_TYPES.get(node.value, node.value)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        if node.attr == "cuda" and _is_torch(node.value):
            return ast.copy_location(ast.Name(_ALIAS, node.ctx), node)
        if node.attr == "is_cuda":  # asked to mean "on the compute device"
            return ast.copy_location(ast.Constant(True), node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        for keyword in node.keywords:
            if keyword.arg == "pin_memory":
                keyword.value = ast.copy_location(ast.Constant(False), keyword.value)
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr in ("cuda", "pin_memory", "record_stream"):
            return node if _is_torch(function.value) else function.value
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        if node.module == "torch.cuda" and node.level == 0:
            node.module = STAND_IN
        return node


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        source = self.get_data(path)
        if b"cuda" not in source and b"pin_memory" not in source:
            return super().get_code(fullname)
        # Compiled here and never cached: a rewritten .pyc must not reach a GPU run.
        return compile(rewrite(source, path), path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        adjust = _ADJUST.get(module.__name__)
        if adjust:
            adjust(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if not _belongs(fullname):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def _silence_rng_warning(module: ModuleType) -> None:
    """The CPU's generator stands in for the GPU's, so it does change while Megatron forks it."""
    logging.getLogger(module.__name__).addFilter(lambda record: record.getMessage() != _RNG_WARNING)


# Megatron compiles small element-wise functions at import; on the CPU that costs more than it gives.
_ADJUST: dict[str, Callable[[ModuleType], None]] = {
    "megatron.core.jit": lambda module: module.disable_jit_fuser(),
    "megatron.core.tensor_parallel.mappings": uneven.adjust,
    "megatron.core.tensor_parallel.random": _silence_rng_warning,
}


def _belongs(name: str) -> bool:
    return name == PACKAGE or name.startswith(PACKAGE + ".")


def _is_torch(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "torch"


def _first_statement(tree: ast.Module) -> int:
    """The index behind the docstring and the ``__future__`` imports."""
    for index, node in enumerate(tree.body):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if not docstring and not future:
            return index
    return len(tree.body)
