"""Makes the helpers in tests/ importable from every test, runs Triton's kernels where there is no GPU, and keeps
Megatron's advice out of sight."""

import os
import sys
from pathlib import Path

import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

from kernels import interpret_triton

if not torch.cuda.is_available():
    interpret_triton()

# Times here are noise: a slow first call (imports, thread pools) is no failure. The same examples in every run: a
# failure is then the change's. `HYPOTHESIS=explore make test` draws new ones, and many more.
settings.register_profile("house", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS", "house"))


def pytest_configure(config):
    for module in ("megatron", "areal_mega.runtime.cpu", "torch.distributed", "triton.runtime.interpreter"):
        config.addinivalue_line("filterwarnings", f"ignore:::{module}")
