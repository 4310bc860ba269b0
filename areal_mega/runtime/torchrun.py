"""Starting a program on several ranks of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress


def torchrun(tool: str, *arguments: str, ranks: int = 2) -> int:
    """Run ``tools/<tool>`` under torchrun, from the repository's root; its exit status.

    Standalone: the ranks meet at a free port, so that runs beside each other do not collide. Ctrl-C reaches torchrun
    as well, which needs a moment to end its ranks: this waits for it.
    """
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    process = subprocess.Popen([*launch, f"tools/{tool}", *arguments], env=environment)
    while True:
        with suppress(KeyboardInterrupt):
            return process.wait()
