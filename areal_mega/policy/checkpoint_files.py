"""Hugging Face model folders: reading slices of their tensors, writing them anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig

from areal_mega.config.errors import UserError
from areal_mega.resharding.coordinates import Box

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
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


class HFWeights:
    """The tensors of a model folder; reads only what is asked for."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._files = self._locate()
        self._open: dict[Path, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def read(self, box: Box, shape: tuple[int, ...]) -> Tensor:
        """The elements in ``box`` of a tensor that has, or should have, this ``shape``.

        Raises:
            UserError: the tensor is missing or has another shape than config.json implies.
        """
        if box.name not in self._files:
            raise UserError(f"{self.folder} has no tensor {box.name}, which its config.json asks for")
        file = self._files[box.name]
        try:
            tensor = self._handle(file).get_slice(box.name)
        except SafetensorError as error:
            raise UserError(f"{file} does not hold {box.name}, which {INDEX} says is there") from error
        found = tuple(tensor.get_shape())
        if found != shape:
            raise UserError(f"{file}: tensor {box.name} has shape {found}, but config.json implies {shape}")
        return tensor[box.slices]

    def _locate(self) -> dict[str, Path]:
        index = self.folder / INDEX
        if not index.is_file():
            file = self.folder / SINGLE
            return dict.fromkeys(self._handle_names(file), file)
        try:
            files = json.loads(index.read_text())["weight_map"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{index} is not an index of safetensors files (no weight_map)") from error
        return {name: self.folder / file for name, file in files.items()}

    def _handle_names(self, file: Path) -> list[str]:
        with _open(file) as handle:
            return list(handle.keys())

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            self._open[file] = _open(file)
        return self._open[file]


def _open(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"{file} does not exist; the model's weights must be safetensors files")
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a whole safetensors file ({error}); fetch it again") from error


def write_folder(
    folder: str | Path,
    hf: PretrainedConfig,
    tensors: Iterable[tuple[str, Tensor]],
    source: str | Path,
    shard_bytes: int = 4 << 30,
) -> None:
    """Write a model folder that transformers loads: weights, config, and the tokenizer files of ``source``.

    ``folder`` appears (or changes) at once when all is written; a broken run leaves it as it was.
    """
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_shards(partial, tensors, shard_bytes)
    hf.save_pretrained(partial)
    for pattern in _COPIED:
        for file in Path(source).glob(pattern):
            shutil.copy(file, partial)
    _swap(partial, folder)


def _write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> None:
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    total = size = 0

    def flush() -> None:
        save_file(pending, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        bytes_ = tensor.numel() * tensor.element_size()
        if pending and size + bytes_ > shard_bytes:
            flush()
            size = 0
        pending[name] = tensor.contiguous().cpu()
        size, total = size + bytes_, total + bytes_
    flush()
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / SINGLE)
        return
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for i, name in enumerate(names):
        (folder / f"shard-{i}").rename(folder / name)
    weight_map = {tensor: file for file, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _swap(new: Path, folder: Path) -> None:
    """Put ``new`` in the place of ``folder``, which may exist."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
