"""Which run directory a program works in, and which checkpoint it goes on from.

A run is gone on with when the option resume says so, and when torchrun starts its ranks anew after a failure
(``--max-restarts``): then they find the directory that they had before.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from areal_mega.config.errors import UserError
from areal_mega.config.options import CommonOptions
from areal_mega.runtime import run_directory
from areal_mega.runtime.checkpoint_folders import FOLDER, CheckpointFolders, is_checkpoint

STARTED_BY = ".torchrun"
SAMPLED = "answers.jsonl"  # what rejection sampling can go on from before its first checkpoint


def enter(options: CommonOptions) -> Path:
    """The run's directory: one to go on in, or a new one; called on one rank, which tells the others.

    Raises:
        UserError: resume names no run with checkpoints, or another than run_name does.
    """
    directory = _before_restart(options) if _restarts() else None
    if directory is None and options.resume is not None:
        directory = _chosen(options)
    if directory is None:
        directory = run_directory.create(options)
    else:
        run_directory.open_again(directory, options)
    (directory / STARTED_BY).write_text(_torchrun())
    return directory


def point(options: CommonOptions, directory: Path) -> Path | None:
    """The checkpoint to go on from, as it was asked for; None: training begins.

    Raises:
        UserError: resume names a checkpoint that does not exist, or a run without any.
    """
    folders = CheckpointFolders(directory)
    if options.resume is None or _restarts():
        return folders.latest()
    named = Path(options.resume)
    if is_checkpoint(named):
        if not named.is_dir():
            known = ", ".join(path.name for path in folders.all()) or "none"
            raise UserError(f"resume={options.resume}: no such checkpoint; the run has: {known}.")
        return folders.root / named.name
    found = folders.latest()
    if found is None and not (directory / SAMPLED).is_file():
        raise UserError(
            f"resume={options.resume}: {directory} has no checkpoint; it ended before its first one, or ran without "
            "checkpoint.every. Start it anew."
        )
    return found


def _chosen(options: CommonOptions) -> Path:
    output = Path(options.output).resolve()
    if options.resume == "latest":
        directory = (output / (options.run_name or "latest")).resolve()
        if not directory.is_dir():
            raise UserError(f"resume=latest: {output} has no run {options.run_name or 'that was started last'}.")
        return directory
    named = Path(str(options.resume)).resolve()
    directory = named.parent.parent if is_checkpoint(named) else named
    if not (directory / FOLDER).is_dir() and not (directory / SAMPLED).is_file():
        raise UserError(
            f"resume={options.resume}: neither a run directory with {FOLDER} in it nor one of its checkpoints."
        )
    if options.run_name is not None and directory != output / options.run_name:
        raise UserError(
            f"resume={options.resume} goes on in {directory}, but run_name={options.run_name} names another "
            "directory; leave one of them out."
        )
    return directory


def _before_restart(options: CommonOptions) -> Path | None:
    """The directory in which these ranks worked before torchrun started them anew."""
    mine = _torchrun()
    for file in Path(options.output).resolve().glob(f"*/{STARTED_BY}"):
        if not file.parent.is_symlink() and file.read_text() == mine:
            return file.parent
    return None


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def _torchrun() -> str:
    """The torchrun that started this rank: its run id, or if it was given none, the process on this machine."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if run_id != "none":
        return run_id
    parent = os.getppid()
    started = Path(f"/proc/{parent}/stat").read_text().rsplit(")", 1)[1].split()[19]
    return f"{socket.gethostname()} {parent} {started}"
