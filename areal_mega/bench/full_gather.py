"""What planned updates are measured against: whole Hugging Face tensors from one process into a running engine.

The tensors are laid end to end in one buffer of shared memory, which is made once and used again each time.
Over HTTP go only names, shapes and offsets. SGLang's own `load_weights` takes them apart.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from multiprocessing.reduction import ForkingPickler

import torch
from torch import Tensor

from areal_mega.config.dtypes import DTYPES
from areal_mega.resharding.shared_memory import shared_bytes
from areal_mega.rollout.server import SGLangServer

NamedTensors = list[tuple[str, Tensor]]

ALIGNMENT = 64


class FullWeightTransport:
    """Sends full tensors, by their Hugging Face names, to every tensor-parallel rank of one engine.

    buffer_bytes: largest chunk sent at once, thus the shared memory held; a larger tensor is sent alone.
    """

    def __init__(self, engine: SGLangServer, buffer_bytes: int = 1 << 30) -> None:
        self._engine = engine
        self._dtype = DTYPES[engine.dtype]
        self._buffer_bytes = buffer_bytes
        self._buffer: Tensor | None = None

    def send(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the engine's weights; afterwards it generates with, and reports, ``version``.

        Tensors of another type than the engine's are cast while they are copied. No request may be under way:
        the prefix cache of the old weights is flushed.

        Raises:
            RuntimeError: the engine refused. Its weights are then partly old and partly new, so it is marked
                as failed and refuses all further use.
            UserError: there is too little shared memory.
        """
        try:
            self._engine.order("/begin_weight_update")
            for chunk in self._chunks(named_tensors):
                self._send_chunk(chunk, version)
            self._engine.order("/end_weight_update")
            reported = self._engine.weight_version()
            if reported != version:
                raise RuntimeError(f"the engine reports weight version {reported}")
        except BaseException as error:
            self._engine.mark_failed(f"The engine's weights are unknown since update {version} failed: {error}")
            raise

    def _chunks(self, named_tensors: Iterable[tuple[str, Tensor]]) -> Iterator[NamedTensors]:
        """Consecutive tensors that fit the buffer together."""
        chunk: NamedTensors = []
        used = 0
        for name, tensor in named_tensors:
            size = self._size(tensor)
            if chunk and used + size > self._buffer_bytes:
                yield chunk
                chunk, used = [], 0
            chunk.append((name, tensor))
            used += size
        if chunk:
            yield chunk

    def _send_chunk(self, chunk: NamedTensors, version: int) -> None:
        views = self._copy_to_buffer(chunk)
        # Pickled anew for each rank: every pickle counts as one user of the shared memory.
        payloads = [base64.b64encode(_pickle_shared(views)).decode() for _ in range(self._engine.options.tensor)]
        body = {"serialized_named_tensors": payloads, "flush_cache": True, "weight_version": str(version)}
        self._engine.order("/update_weights_from_tensor", body)

    def _copy_to_buffer(self, chunk: NamedTensors) -> NamedTensors:
        """The same tensors as views of the shared buffer, in the engine's type."""
        buffer = self._buffer_of(sum(self._size(tensor) for _, tensor in chunk))
        views: NamedTensors = []
        offset = 0
        for name, tensor in chunk:
            size = tensor.numel() * self._dtype.itemsize
            view = buffer[offset : offset + size].view(self._dtype).view(tensor.shape)
            views.append((name, view.copy_(tensor.detach())))
            offset += self._size(tensor)
        return views

    def _size(self, tensor: Tensor) -> int:
        return -(-tensor.numel() * self._dtype.itemsize // ALIGNMENT) * ALIGNMENT

    def _buffer_of(self, size: int) -> Tensor:
        if self._buffer is None or self._buffer.numel() < size:
            self._buffer = None
            self._buffer = shared_bytes(size, torch.device("cpu"))
        return self._buffer


def _pickle_shared(tensors: NamedTensors) -> bytes:
    """Pickle tensors of named shared memory by reference."""
    # With torch's default strategy the receiver asks this process for a file descriptor, over a socket
    # whose key only child processes have.
    strategy = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        return bytes(ForkingPickler.dumps(tensors))
    finally:
        torch.multiprocessing.set_sharing_strategy(strategy)
