"""The CPU's stand-in for the ``torch.cuda`` namespace, as far as Megatron-Core touches it.

The CPU has one device, one stream that is always done, and one random generator. A name that is not
here is torch.cuda's own, which fails loudly when it is used without a GPU.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import torch

FloatTensor, HalfTensor, BFloat16Tensor = torch.FloatTensor, torch.HalfTensor, torch.BFloat16Tensor


class _Done:
    """A stream or an event on a device without queues: all work is done when it is asked for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def record(self, *args: Any) -> None:
        pass

    wait = wait_event = wait_stream = synchronize = record

    def record_event(self, *args: Any) -> _Done:
        return self

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: _Done) -> float:
        return 0.0


class Stream(_Done):
    pass


class Event(_Done):
    pass


_STREAM = Stream()


class device(contextlib.nullcontext):
    def __init__(self, *args: Any) -> None:
        super().__init__()


class _Generators:
    def __getitem__(self, index: int) -> torch.Generator:
        return torch.random.default_generator


default_generators = _Generators()


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _zero(*args: Any, **kwargs: Any) -> int:
    return 0


def _context(*args: Any, **kwargs: Any) -> contextlib.nullcontext:
    return contextlib.nullcontext()


synchronize = empty_cache = set_device = set_stream = _lazy_init = _nothing
memory_allocated = max_memory_allocated = memory_reserved = _zero
stream = _context
nvtx = SimpleNamespace(range_push=_nothing, range_pop=_nothing, range=_context)


def is_available() -> bool:
    return False


def is_current_stream_capturing() -> bool:
    return False


def device_count() -> int:
    return 1


def current_device() -> torch.device:
    return torch.device("cpu")


def current_stream(device: Any = None) -> Stream:
    return _STREAM


default_stream = current_stream


def memory_stats(device: Any = None) -> dict[str, int]:
    return {}


def manual_seed(seed: int) -> None:
    torch.random.default_generator.manual_seed(int(seed))


def get_rng_state(device: Any = None) -> torch.Tensor:
    return torch.random.get_rng_state()


def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
    torch.random.set_rng_state(state)


def _lazy_call(function: Any, **kwargs: Any) -> None:
    function()


random = SimpleNamespace(get_rng_state=get_rng_state, set_rng_state=set_rng_state)


def __getattr__(name: str) -> Any:
    return getattr(torch.cuda, name)
