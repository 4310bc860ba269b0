"""Starting a program on several ranks of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress


def torchrun(module: str, *arguments: str, ranks: int = 2) -> int:
    """Run a program, such as ``areal_mega.tools.train_ppo``, under torchrun; its exit status.

    Standalone: the ranks meet at a free port, so that runs beside each other do not collide. Ctrl-C reaches torchrun
    as well, which needs a moment to end its ranks: this waits for it.
    """
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    # PYTHONSAFEPATH, as python -P: in the source tree SGLang would find our triton_kernels in the working directory.
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONSAFEPATH": "1"}
    process = subprocess.Popen([*launch, "-m", module, *arguments], env=environment)
    while True:
        with suppress(KeyboardInterrupt):
            return process.wait()
