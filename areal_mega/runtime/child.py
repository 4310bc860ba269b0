"""A Python process of this package beside the caller's, with a pipe between them."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection


def start_child(module: str, **environment: str) -> tuple[subprocess.Popen[bytes], Connection]:
    """Run ``main(descriptor)`` of a module in a new process; the descriptor is its end of the pipe.

    It is not multiprocessing's spawn, which would import the caller's program again. The process is in a group of its
    own: what it starts can be ended with it, and the terminal's Ctrl-C is the caller's. It has one thread for maths.

    environment: variables beyond those of this process.
    """
    ours, theirs = Pipe()
    descriptor = theirs.fileno()
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", f"from {module} import main; main({descriptor})"],
        stdin=subprocess.DEVNULL,
        pass_fds=[descriptor],
        process_group=0,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    theirs.close()
    return process, ours
