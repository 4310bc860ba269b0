"""Lets the real SGLang run on a CPU-only machine, without its GPU kernel packages.

SGLang resolves its platform before it imports any kernel, in each of its processes, and to do so calls every
entry point of the group ``sglang.srt.platforms``; ours is `activate`. Where there is an accelerator it does
nothing at all. Elsewhere it selects SGLang's own CPU platform and lets the imports of absent kernel packages
succeed: names taken from them can be passed around, but calling one raises.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

KERNEL_PACKAGES = ("sgl_kernel", "torchvision")


def activate() -> None:
    """Prepare this process for SGLang on CPU; returns None, so SGLang's in-tree platform serves."""
    if _has_accelerator():
        return
    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    if os.environ["SGLANG_USE_CPU_ENGINE"] == "1":
        _stand_in_for_absent(KERNEL_PACKAGES)


def _has_accelerator() -> bool:
    import torch

    return torch.cuda.is_available() or torch.xpu.is_available()


def _stand_in_for_absent(packages: tuple[str, ...]) -> None:
    absent = {name for name in packages if importlib.util.find_spec(name) is None}
    if "torchvision" in absent:
        _let_transformers_see_no_torchvision()
    if absent and not any(isinstance(finder, AbsentPackageFinder) for finder in sys.meta_path):
        sys.meta_path.append(AbsentPackageFinder(absent))


def _let_transformers_see_no_torchvision() -> None:
    # transformers caches the answer; asked after the finder is in place it would be a wrong yes.
    from transformers.utils import import_utils

    import_utils.is_torchvision_available()
    import_utils.is_torchvision_v2_available()


class AbsentPackageFinder(MetaPathFinder, Loader):
    """Finds the named packages when nothing else did: it stands last on ``sys.meta_path``."""

    def __init__(self, packages: set[str]) -> None:
        self._packages = packages

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] in self._packages:
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _AbsentModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: every attribute is made on demand."""


class _AbsentModule(ModuleType):
    def __getattr__(self, name: str) -> AbsentKernel:
        if name.startswith("__"):
            raise AttributeError(name)
        return AbsentKernel(f"{self.__name__}.{name}")


class AbsentKernel:
    """A name imported from a package that is not installed; it can be held, not called."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> AbsentKernel:
        if name.startswith("__"):
            raise AttributeError(name)
        return AbsentKernel(f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"{self._name} needs an accelerator; this machine has none")
