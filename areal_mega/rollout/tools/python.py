"""Python programs, in the sandbox."""

from __future__ import annotations

import os
import threading

from areal_mega.rollout.tools.tool import Tool
from areal_mega.runtime.sandbox import Limits, run

_SECONDS = 6.0
# A program's time limit is wall time: more of them than cores would slow each other down.
_CORES = threading.BoundedSemaphore(os.cpu_count() or 1)
# What a model is shown of a program that writes much: the beginning.
_SHOWN = 2000


def execute(code: str) -> str:
    """What the program writes; when it fails, the end of its traceback too."""
    with _CORES:
        ended = run(str(code), limits=Limits(seconds=_SECONDS))
    said = ended.stdout.decode(errors="replace")[:_SHOWN].rstrip()
    if ended.status == "ok":
        return said or "(no output; print what you want to see)"
    last = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2][:_SHOWN]
    why = {"time": f"not done in {_SECONDS:g} seconds", "output": "wrote too much"}.get(ended.status, last)
    return f"{said}\nerror: {why}".lstrip()


python = Tool(
    name="python",
    description="Runs a Python program and returns what it prints. Nothing is kept from one call to the next.",
    parameters={"code": {"type": "string", "description": "The whole program."}},
    run=execute,
)
