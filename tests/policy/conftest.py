"""Megatron in this process: a world of one on the CPU, set up before anything imports megatron."""

import pytest

from areal_mega.config.options import ParallelOptions, RuntimeOptions
from areal_mega.runtime import cpu
from areal_mega.runtime.distributed import initialize, shutdown

cpu.enable()


@pytest.fixture(scope="session")
def topology():
    yield initialize(RuntimeOptions(device="cpu"), ParallelOptions(), seed=1)
    shutdown()
