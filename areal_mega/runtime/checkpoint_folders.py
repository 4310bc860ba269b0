"""A run's folder of checkpoints: ``checkpoints/step-00000012``, and ``latest``, which links to the newest.

A checkpoint is made in a hidden folder and renamed when it is whole: nobody ever sees half of one.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from pathlib import Path

from areal_mega.runtime import manifest

FOLDER = "checkpoints"
LATEST = "latest"
_STEP = re.compile(r"step-(\d{8,})")


def is_checkpoint(path: Path) -> bool:
    """Whether a path names a checkpoint, going by its last part."""
    return _STEP.fullmatch(path.name) is not None


def step_of(path: Path) -> int:
    """The step after which a checkpoint was made."""
    match = _STEP.fullmatch(path.name)
    assert match, path
    return int(match[1])


class CheckpointFolders:
    """The checkpoints of one run directory."""

    def __init__(self, run: Path) -> None:
        self.root = run / FOLDER

    def path(self, step: int) -> Path:
        return self.root / f"step-{step:08}"

    def all(self) -> list[Path]:
        """All checkpoints, the oldest first."""
        return sorted(filter(is_checkpoint, self.root.glob("step-*")), key=step_of)

    def latest(self) -> Path | None:
        """The checkpoint that ``latest`` links to, or without a link the newest; None: there is none."""
        link = self.root / LATEST
        if link.is_symlink():
            target = self.root / os.readlink(link)
            if target.is_dir():
                return target
        return self.all()[-1] if self.all() else None

    def begin(self, step: int) -> Path:
        """A new hidden folder to make the checkpoint in; what killed runs left of theirs is removed."""
        for leftover in self.root.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        # A writer of a killed run may still be at work in its folder: the name is new each time.
        partial = self.root / f".{self.path(step).name}.{uuid.uuid4().hex[:8]}"
        partial.mkdir(parents=True)
        return partial

    def publish(self, partial: Path, step: int, known: dict[str, manifest.Entry]) -> Path:
        """Write the manifest and put the checkpoint in its place; known: see `manifest.write`."""
        manifest.write(partial, known)
        _sync(partial)
        path = self.path(step)
        if path.exists():  # of a run that was resumed from an earlier step
            path.rename(self.root / f".{path.name}.old")
        partial.rename(path)
        shutil.rmtree(self.root / f".{path.name}.old", ignore_errors=True)
        self.point_latest(path)
        _sync(self.root)
        return path

    def point_latest(self, path: Path) -> None:
        """Let ``latest`` link to a checkpoint of this run."""
        temporary = self.root / f".{LATEST}-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(path.name)
        temporary.replace(self.root / LATEST)

    def prune(self, keep: int, newest: Path) -> None:
        """Remove all but ``keep`` of the checkpoints up to ``newest``."""
        known = [path for path in self.all() if step_of(path) <= step_of(newest)]
        for path in known[: max(0, len(known) - keep)]:
            doomed = path.with_name(f".{path.name}.old")
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Have the system write out a folder's files and their names, so that a power cut cannot undo them."""
    for path in [p for p in folder.rglob("*") if p.is_file()] if folder.name.startswith(".") else []:
        _fsync(path)
    _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
