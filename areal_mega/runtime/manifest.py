"""Checksums of all files of a folder, in a file that is written last: what it vouches for is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

MANIFEST = "manifest.json"

Entry = dict[str, int | str]  # bytes, sha256


def entry(path: Path) -> Entry:
    """Size and checksum of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write(folder: Path, known: Mapping[str, Entry]) -> None:
    """Write the manifest of ``folder``; known: entries by path in the folder that need no second reading."""
    entries = {name: known.get(name) or entry(folder / name) for name in _files(folder)}
    (folder / MANIFEST).write_text(json.dumps(entries, indent=1) + "\n")


def problems(folder: Path, share: int = 0, shares: int = 1) -> Iterator[str]:
    """What is wrong with a folder, in sentences that name the file.

    share: of ``shares`` readers, each of which looks at some of the files.
    """
    try:
        entries = json.loads((folder / MANIFEST).read_text())
        names = sorted(entries, key=lambda name: (-entries[name]["bytes"], name))
    except FileNotFoundError:
        if share == 0:
            yield f"{folder} has no {MANIFEST}: it is no whole checkpoint."
        return
    except (OSError, ValueError, TypeError, KeyError) as error:
        if share == 0:
            yield f"{folder / MANIFEST} cannot be read: {error}."
        return
    for name in names[share::shares]:
        yield from _problems_of(folder / name, entries[name])


def _problems_of(path: Path, expected: Entry) -> Iterator[str]:
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            kind = "truncated" if size < int(expected["bytes"]) else "too long"
            yield f"{path} is {kind}: it has {size} bytes, but {MANIFEST} says {expected['bytes']}."
        elif entry(path) != expected:
            yield f"{path} was changed: it is not the file whose checksum is in {MANIFEST}."
    except FileNotFoundError:
        yield f"{path} is missing, but {MANIFEST} lists it."
    except OSError as error:
        yield f"{path} cannot be read: {error}."


def _files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
