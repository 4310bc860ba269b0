"""Verifiers as a user writes them, in a module that workers import from the folder the run starts in."""

import os
import signal
import subprocess
from pathlib import Path


def half(response, prompt):
    """Half a point for trying."""
    return 0.5 if response else 0.0


def broken(response, prompt):
    raise ZeroDivisionError("no luck")


def endless(response, prompt):
    """Hangs in C code that no alarm interrupts and no thread survives; leaves a child behind."""
    Path(prompt.metadata["folder"], str(os.getpid())).touch()
    subprocess.Popen(["sleep", "1000"])
    return (1 << 40_000_000) ** 50_000


def dies(response, prompt):
    os.kill(os.getpid(), signal.SIGKILL)


def says(response, prompt):
    print("a verifier that prints does no harm")
    return float(response)
