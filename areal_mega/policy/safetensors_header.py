"""The header of a safetensors file, compared with the file.

Format: eight bytes, little-endian, the length N of the header; N bytes of JSON, which for each tensor names type,
shape and place; then the data. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

from areal_mega.config.errors import UserError

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# What a header may be at most; a file of another kind would ask for petabytes.
LONGEST_HEADER = 100 << 20


@dataclass(frozen=True)
class TensorEntry:
    """What a header says of a tensor. dtype: as safetensors names it, such as ``BF16``."""

    dtype: str
    shape: tuple[int, ...]


def read_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors of a file by name.

    Raises:
        UserError: the file is truncated or none of this format, a tensor lies outside of it or has a type that no
            weights have. File and tensor are named.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise UserError(f"{file} is not a whole safetensors file: it ends inside of its header; fetch it again")
        text = stream.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        places = {name: tuple(entry["data_offsets"]) for name, entry in header.items()}
        entries = {name: TensorEntry(entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not a whole safetensors file: its header is damaged; fetch it again") from error
    end = 0
    for name, (start, stop) in sorted(places.items(), key=lambda item: item[1]):
        _check(file, name, entries[name], stop - start)
        if start != end:
            raise UserError(f"{file} is damaged: tensor {name} starts at byte {start} of the data, not at {end}")
        end = stop
        if 8 + length + end > size:
            raise UserError(
                f"{file} is not a whole safetensors file: tensor {name} ends at byte {8 + length + end}, but the "
                f"file has {size}; fetch it again"
            )
    if 8 + length + end < size:
        raise UserError(f"{file} is damaged: it has {size - 8 - length - end} bytes that belong to no tensor")
    return entries


def _check(file: Path, name: str, entry: TensorEntry, bytes_: int) -> None:
    if entry.dtype not in ITEM_BYTES:
        raise UserError(
            f"{file}: tensor {name} has type {entry.dtype}, but weights must be one of {', '.join(ITEM_BYTES)}; "
            "use the original, unquantized weights"
        )
    if prod(entry.shape) * ITEM_BYTES[entry.dtype] != bytes_:
        raise UserError(f"{file} is damaged: tensor {name} of shape {entry.shape} does not fill its {bytes_} bytes")
