"""Data files as records, each with the place it was read from.

JSONL, JSON arrays, CSV, Parquet, Arrow, folders of them, folders that Hugging Face `datasets` saved, and files on the
Hugging Face Hub. `datasets` itself is not needed: what it saves is Arrow.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from areal_mega.config.errors import UserError

HUB = "hf://datasets/"
_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".arrow")
_BATCH_ROWS = 1024


def read_records(path: str, option: str) -> Iterator[tuple[str, Any]]:
    """Each record with its place, ``file:line`` or ``file:row N``, for messages; rows and items count from 1.

    option: the name of the option that holds ``path``, for messages. A record is an object, or a list of objects
    (the turns of a chat).

    Raises:
        UserError: there is no such file, it cannot be read or has no records, or a line is no record.
    """
    empty = True
    for file in _files(path, option):
        for where, record in _READERS.get(file.suffix, _jsonl)(file):
            if not isinstance(record, dict) and not _is_chat(record):
                raise UserError(f"{where}: expected a JSON object, found {type(record).__name__}.")
            empty = False
            yield where, record
    if empty:
        raise UserError(f"{option}={path}: the file has no lines.")


def _files(path: str, option: str) -> list[Path]:
    if path.startswith(HUB):
        return [_download(path, option)]
    place = Path(path)
    if place.is_dir():
        return _files_of_folder(place, option)
    if not place.is_file():
        raise UserError(f"{option}={path}: no such file.")
    return [place]


def _files_of_folder(folder: Path, option: str) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        raise UserError(
            f"{option}={folder}: holds several splits; name one: {', '.join(f'{folder}/{s}' for s in splits)}."
        )
    if (folder / "state.json").is_file():
        return [folder / file["filename"] for file in json.loads((folder / "state.json").read_text())["_data_files"]]
    files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)
    if not files:
        raise UserError(f"{option}={folder}: the folder has no {', '.join(_SUFFIXES)} file.")
    return files


def _download(path: str, option: str) -> Path:
    """A file of ``hf://datasets/OWNER/NAME[@REVISION]/FILE``, from the Hub or its local cache."""
    from huggingface_hub import hf_hub_download

    owner, _, rest = path.removeprefix(HUB).partition("/")
    name, _, file = rest.partition("/")
    name, _, revision = name.partition("@")
    if not (owner and name and file):
        raise UserError(
            f"{option}={path}: expected {HUB}OWNER/NAME/FILE, such as {HUB}openai/gsm8k/main/train.parquet."
        )
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file, repo_type="dataset", revision=revision or None))
    except Exception as error:
        raise UserError(
            f"{option}={path}: cannot be fetched from the Hugging Face Hub: {str(error).splitlines()[0]} "
            "Download the file yourself and name its path."
        ) from error


def _jsonl(file: Path) -> Iterator[tuple[str, Any]]:
    with open(file, "rb") as lines:
        for number, text in enumerate(lines, 1):
            if not text.strip():
                continue
            where = f"{file}:{number}"
            try:
                yield where, json.loads(text.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: not UTF-8 (byte {error.start + 1} of the line).") from None
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: not JSON: {error.msg} (column {error.colno}).") from None


def _json(file: Path) -> Iterator[tuple[str, Any]]:
    """A file that is one array; some are JSONL by another name."""
    text = file.read_bytes()
    if not text.lstrip().startswith(b"["):
        yield from _jsonl(file)
        return
    try:
        items = json.loads(text.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        yield from _jsonl(file)  # lines that are lists, or lines that name the error
        return
    yield from ((f"{file}:item {number}", item) for number, item in enumerate(items, 1))


def _csv(file: Path) -> Iterator[tuple[str, Any]]:
    """With the names of its columns in the first line."""
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            yield from ((f"{file}:row {number}", row) for number, row in enumerate(csv.DictReader(lines), 1))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: cannot be read as CSV: {error}.") from error


def _parquet(file: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            yield from _rows(file, table.iter_batches(_BATCH_ROWS))
    except pyarrow.ArrowException as error:
        raise UserError(f"{file}: cannot be read as Parquet: {error}.") from error


def _arrow(file: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow

    try:
        with pyarrow.memory_map(str(file)) as source:
            try:
                batches = pyarrow.ipc.open_stream(source)
            except pyarrow.ArrowInvalid:
                reader = pyarrow.ipc.open_file(source)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            yield from _rows(file, batches)
    except pyarrow.ArrowException as error:
        raise UserError(f"{file}: cannot be read as Arrow: {error}.") from error


def _rows(file: Path, batches: Any) -> Iterator[tuple[str, Any]]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            # A column that a row does not use is null there.
            yield f"{file}:row {number}", {name: value for name, value in row.items() if value is not None}


def _is_chat(record: Any) -> bool:
    return isinstance(record, list) and bool(record) and all(isinstance(turn, dict) for turn in record)


_READERS = {".json": _json, ".csv": _csv, ".parquet": _parquet, ".arrow": _arrow}
