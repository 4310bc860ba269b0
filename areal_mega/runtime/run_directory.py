"""The one directory of a run, the same on all ranks, and what every run leaves in it."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import yaml

from areal_mega.config.errors import UserError
from areal_mega.config.options import CommonOptions


def create(options: CommonOptions) -> Path:
    """Make the run directory and write the options into it; called on one rank, which tells the others.

    ``<output>/latest`` links to it from now on.

    Raises:
        UserError: run_name is no name of a folder, or names a run that exists already.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    output = Path(options.output).resolve()
    if options.run_name is not None:
        directory = output / _checked(options.run_name)
        if directory.exists():
            raise UserError(f"run_name={options.run_name}: {directory} exists already; choose another name.")
        directory.mkdir(parents=True)
    else:
        directory = _unused(output, f"{options.experiment}-{stamp}")
    open_again(directory, options)
    return directory


def open_again(directory: Path, options: CommonOptions) -> None:
    """Write the options into a run directory, and let ``latest`` beside it link to it."""
    (directory / "options.yaml").write_text(yaml.safe_dump(dataclasses.asdict(options), sort_keys=False))
    _link_latest(directory.parent, directory.name)


def write_summary(directory: Path, summary: dict[str, Any]) -> Path:
    """Write ``summary.json``; a reader never sees half of it."""
    path = directory / "summary.json"
    temporary = directory / ".summary.json"
    temporary.write_text(json.dumps(summary, indent=2) + "\n")
    temporary.replace(path)
    return path


def _checked(name: str) -> str:
    if name in ("", ".", "..", "latest") or "/" in name:
        raise UserError(
            f"run_name={name}: must be the name of one folder, other than latest; the option output says where it is."
        )
    return name


def _unused(output: Path, name: str) -> Path:
    """A new directory; two runs started in the same second get different ones."""
    for suffix in ["", *(f"-{i}" for i in range(2, 100))]:
        try:
            (output / (name + suffix)).mkdir(parents=True)
            return output / (name + suffix)
        except FileExistsError:
            continue
    raise UserError(f"output={output}: too many runs were started in the same second.")


def _link_latest(output: Path, name: str) -> None:
    temporary = output / f".latest-{os.getpid()}"
    temporary.unlink(missing_ok=True)  # a killed run may have had this process's number
    temporary.symlink_to(name)
    temporary.replace(output / "latest")
