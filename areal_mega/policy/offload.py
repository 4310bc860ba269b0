"""Memory of the device for memory of the host: tensors that are there only while they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager

import torch
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


class Parked:
    """Tensors whose memory is on the host, but within `here`.

    Their objects stay the same, so that whoever holds them sees the values. Nobody may hold views of them.
    """

    def __init__(self, tensors: Callable[[], Iterable[Tensor]], device: torch.device) -> None:
        """tensors: asked for anew each time, as an optimizer makes its states late."""
        self._tensors, self._device = tensors, device
        self._hosts: MutableMapping[Tensor, Tensor] = WeakIdKeyDictionary()
        self.park()

    @contextmanager
    def here(self) -> Iterator[None]:
        """The tensors are on the device."""
        for tensor in self._tensors():
            if tensor in self._hosts:
                tensor.data = torch.empty_like(tensor, device=self._device).copy_(tensor, non_blocking=True)
        try:
            yield
        finally:
            self.park()

    @torch.no_grad()
    def park(self) -> None:
        """Copy the tensors to the host, and free their memory on the device."""
        pairs = [(tensor, self._host(tensor)) for tensor in self._tensors()]
        for tensor, host in pairs:
            host.copy_(tensor, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        for tensor, host in pairs:
            tensor.data = host

    def _host(self, tensor: Tensor) -> Tensor:
        """Memory that is pinned once and used again, as that takes long."""
        if tensor not in self._hosts:
            pinned = self._device.type == "cuda"
            self._hosts[tensor] = torch.empty_like(tensor.data, device="cpu", pin_memory=pinned)
        return self._hosts[tensor]


def parked_model(chunks: Iterable[torch.nn.Module], device: torch.device) -> Parked:
    """The parameters of a model without gradients."""
    parameters = [parameter for chunk in chunks for parameter in chunk.parameters()]
    return Parked(lambda: parameters, device)


def parked_optimizer(optimizer: MegatronOptimizer, device: torch.device) -> Parked:
    """Adam's moments, and the float32 weights that 16-bit parameters are rounded from.

    The weights of a float32 model are the optimizer's own, and stay.
    """
    parts = getattr(optimizer, "chained_optimizers", [optimizer])

    def states() -> Iterator[Tensor]:
        for part in parts:
            for group in getattr(part, "shard_fp32_from_float16_groups", []):
                yield from (tensor for tensor in group if tensor is not None)
            for state in part.optimizer.state.values():
                yield from (x for name, x in state.items() if isinstance(x, Tensor) and name != "step")

    return Parked(states, device)
