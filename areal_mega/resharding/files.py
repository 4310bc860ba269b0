"""Messages as files in a folder that training ranks and engines share.

Each file is written once, under a name of its own, before anybody is told of it: so nobody sees a part of it, or an
older one from a cache, on a network file system either.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from areal_mega.resharding.delta import HEADER, Encoded

HEADER_BYTES = 64  # what follows is aligned


def name(update: int, chunk: int, source: int, destination: int) -> str:
    """Of the message from a training rank to a planned destination. update: number of the attempt to send weights."""
    return f"{update}-{chunk}-{source}-{destination}.weights"


def reserve(path: Path, nbytes: int) -> None:
    """Make a file of the size that a message of ``nbytes`` may take. Raises OSError if there is no room for it."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, HEADER_BYTES + nbytes)


def write(path: Path, encoded: Encoded) -> None:
    """Fill a file that was reserved."""
    header = torch.zeros(HEADER_BYTES // 8, dtype=torch.int64)
    header[:HEADER] = torch.tensor(encoded.header)
    with path.open("r+b") as file:
        file.write(header.numpy().tobytes())
        file.write(encoded.payload.cpu().numpy().data)
        file.truncate()


def read(path: Path) -> tuple[list[int], Tensor]:
    """Header and payload of a message. The payload is the file itself, mapped into memory.

    Raises:
        RuntimeError: the file is not there, or shorter than its header says.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise RuntimeError(f"the trainers' file {path} cannot be read: {error.strerror}") from error
    if size >= HEADER_BYTES:
        content = torch.from_file(str(path), size=size, dtype=torch.uint8)
        header = content[:HEADER_BYTES].view(torch.int64)[:HEADER].tolist()
        if size == HEADER_BYTES + header[-1]:
            return header, content[HEADER_BYTES:]
    raise RuntimeError(f"the trainers' file {path} is cut off after {size} bytes")


def write_mail(folder: Path, rank: int, mailbox: Tensor) -> None:
    """What an engine rank reports: int64 ``[numbers]``."""
    _mail(folder, rank).write_bytes(mailbox.numpy().tobytes())


def take_mail(folder: Path, rank: int) -> Tensor:
    """What an engine rank reported last; it is removed."""
    path = _mail(folder, rank)
    numbers = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.int64)
    path.unlink()
    return numbers


def _mail(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.mail"
