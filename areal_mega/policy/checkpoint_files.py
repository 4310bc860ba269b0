"""Hugging Face model folders: reading slices of their tensors, writing them anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig

from areal_mega.config.errors import UserError
from areal_mega.policy.safetensors_header import TensorEntry, read_header
from areal_mega.resharding.coordinates import Box

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 4 << 30
# A folder whose reading takes less than some seconds needs no bar.
BYTES_WORTH_A_BAR = 2 << 30
_COPIED = (
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "chat_template*",
    "generation_config.json",
)
# Tensors that a folder may have and a model of its config.json may do without: a tied model's own copy of the
# embedding, heads of other uses of the same body, tables that are computed.
_OPTIONAL = ("lm_head.weight", "value_head.weight", "score.weight")
_OPTIONAL_ENDINGS = ("rotary_emb.inv_freq",)

Gather = Callable[[Any], list[Any]]


class HFWeights:
    """The tensors of a model folder; reads only what is asked for, through the memory map of the file."""

    def __init__(self, folder: str | Path, bar_for: int = 0) -> None:
        """Read the header of every file, and compare it with the file's size and with the index.

        bar_for: bytes that will be read; many of them get a progress bar.

        Raises:
            UserError: a file is missing or not whole, a tensor has a type that is no floating-point type, or the
                index and the files disagree.
        """
        self.folder = Path(folder)
        self._entries: dict[str, tuple[Path, TensorEntry]] = {}
        self._locate()
        self._open: dict[Path, Any] = {}
        self._bar = _Bar(bar_for) if bar_for > BYTES_WORTH_A_BAR else None

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        return list(self._entries)

    def entry(self, name: str) -> TensorEntry:
        return self._entries[name][1]

    def read(self, box: Box, shape: tuple[int, ...]) -> Tensor:
        """The elements in ``box`` of a tensor that has, or should have, this ``shape``.

        Raises:
            UserError: the tensor is missing or has another shape than config.json implies.
        """
        if box.name not in self._entries:
            raise UserError(f"{self.folder} has no tensor {box.name}, which its config.json asks for")
        file, entry = self._entries[box.name]
        if entry.shape != shape:
            raise UserError(f"{file}: tensor {box.name} has shape {entry.shape}, but config.json implies {shape}")
        found = self._handle(file).get_slice(box.name)[box.slices]
        if self._bar:
            self._bar.advance(found.numel() * found.element_size())
        return found

    def whole(self, name: str) -> Tensor:
        """A whole tensor."""
        return self._handle(self._entries[name][0]).get_tensor(name)

    def check_all_used(self, used: Collection[str]) -> None:
        """Compare the folder with the names of all tensors that the model read, on whichever rank.

        Raises:
            UserError: the folder has tensors that no part of the model asks for.
        """
        unused = [n for n in self._entries if n not in used and n not in _OPTIONAL]
        unused = [n for n in unused if not n.endswith(_OPTIONAL_ENDINGS)]
        if unused:
            more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
            file = self._entries[unused[0]][0]
            raise UserError(
                f"{file}: tensor {unused[0]}{more} has no place in the model that config.json describes; "
                "do the two belong together?"
            )

    def _locate(self) -> None:
        index = self.folder / INDEX
        if not index.is_file():
            self._add(self.folder / SINGLE)
            return
        try:
            listed = dict(json.loads(index.read_text())["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{index} is not an index of safetensors files (no weight_map)") from error
        for file in sorted(set(listed.values())):
            self._add(self.folder / file)
        for name, file in listed.items():
            if name not in self._entries or self._entries[name][0].name != file:
                raise UserError(f"{self.folder / file} does not hold {name}, which {INDEX} says is there")
        for name in self._entries.keys() - listed.keys():
            raise UserError(f"{self._entries[name][0]}: tensor {name} is not listed in {INDEX}")

    def _add(self, file: Path) -> None:
        if not file.is_file():
            raise UserError(f"{file} does not exist; the model's weights must be safetensors files")
        for name, entry in read_header(file).items():
            if name in self._entries:
                raise UserError(f"{file}: tensor {name} is in {self._entries[name][0].name} as well")
            self._entries[name] = (file, entry)

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file} is not a whole safetensors file ({error}); fetch it again") from error
        return self._open[file]


class _Bar:
    """A progress bar that ends with the last byte."""

    def __init__(self, total: int) -> None:
        columns = (TextColumn("reading weights"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._progress = Progress(*columns, TimeRemainingColumn(), transient=True)
        self._task = self._progress.add_task("", total=total)
        self._progress.start()

    def advance(self, bytes_: int) -> None:
        self._progress.advance(self._task, bytes_)
        if self._progress.finished:
            self._progress.stop()


def write_config(folder: Path, hf: PretrainedConfig, source: str | Path) -> None:
    """What a model folder has beside its weights: config.json, and the tokenizer files of ``source``."""
    folder.mkdir(parents=True, exist_ok=True)
    hf.save_pretrained(folder)
    for pattern in _COPIED:
        for file in Path(source).glob(pattern):
            shutil.copy(file, folder)


def write_folder(
    folder: str | Path,
    hf: PretrainedConfig,
    tensors: Iterable[tuple[str, Tensor]],
    source: str | Path,
    shard_bytes: int = SHARD_BYTES,
    rank: int = 0,
    gather: Gather = lambda value: [value],
) -> None:
    """Write a model folder that transformers loads: weights, config, and the tokenizer files of ``source``.

    ``folder`` appears (or changes) at once when all is written; a broken run leaves it as it was. Several ranks may
    write it together: each its own ``tensors``, in files of its own. Then ``gather`` returns every rank's value, in
    the order of ranks, to every rank.
    """
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    gather(None)  # the folder is there
    mine = list(_write_shards(partial, tensors, shard_bytes, rank))
    shards = [shard for shards in gather(mine) for shard in shards]
    names = _final_names(len(shards))
    for (file, _), name in zip(shards, names, strict=True):
        if (file, _) in mine:
            (partial / file).rename(partial / name)
    gather(None)  # all files have their names
    if rank == 0:
        if len(shards) > 1:
            _write_index(partial, names, [sizes for _, sizes in shards])
        write_config(partial, hf, source)
        _swap(partial, folder)
    gather(None)  # the folder can be read


Shard = tuple[str, dict[str, int]]  # file, and the bytes of each tensor in it


def _write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int, rank: int) -> Iterator[Shard]:
    """Write files of at most ``shard_bytes`` (unless one tensor is larger); only one is in memory at a time."""
    pending: dict[str, Tensor] = {}
    count = size = 0

    def flush() -> Shard:
        file = f"rank-{rank}-{count}"
        save_file(pending, folder / file, metadata={"format": "pt"})
        return file, {name: tensor.nbytes for name, tensor in pending.items()}

    for name, tensor in tensors:
        if pending and size + tensor.nbytes > shard_bytes:
            yield flush()
            pending.clear()
            count, size = count + 1, 0
        pending[name] = tensor.contiguous().cpu()
        size += tensor.nbytes
    if pending:
        yield flush()


def _final_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE]
    return [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]


def _write_index(folder: Path, names: list[str], shards: list[dict[str, int]]) -> None:
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    assert len(weight_map) == sum(map(len, shards)), "a tensor was written twice"
    total = sum(size for shard in shards for size in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _swap(new: Path, folder: Path) -> None:
    """Put ``new`` in the place of ``folder``, which may exist."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
