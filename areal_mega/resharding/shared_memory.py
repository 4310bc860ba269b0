"""Buffers that processes of one machine share by handing over a description of them."""

from __future__ import annotations

import os
import pickle
from base64 import b64decode, b64encode
from multiprocessing.reduction import ForkingPickler

import torch
from torch import Tensor

from areal_mega.config.errors import UserError

SHARED_MEMORY = "/dev/shm"


def shared_bytes(size: int, device: torch.device) -> Tensor:
    """``[size]`` uint8 that other processes of this machine can map: named shared memory, or plain memory of a GPU.

    Raises:
        UserError: there is too little shared memory.
    """
    if device.type != "cpu":
        return torch.empty(size, dtype=torch.uint8, device=device)
    status = os.statvfs(SHARED_MEMORY)
    free = status.f_bavail * status.f_frsize
    if size > free:
        raise UserError(
            f"Sending the weights takes {size >> 20} MiB of shared memory, and {SHARED_MEMORY} has {free >> 20} MiB "
            "left. Set resharding.buffer_mb lower, or give the container more (docker run --shm-size)."
        )
    storage = torch.UntypedStorage._new_using_filename_cpu(size)
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def describe(tensor: Tensor) -> str:
    """What another process needs to map a tensor that `shared_bytes` made; good for one `attach`."""
    # With torch's default strategy the receiver asks this process for a file descriptor, over a socket
    # whose key only child processes have.
    strategy = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        return b64encode(ForkingPickler.dumps(tensor)).decode()
    finally:
        torch.multiprocessing.set_sharing_strategy(strategy)


def attach(description: str) -> Tensor:
    """The same memory in this process. The description must come from a process that is trusted: it is a pickle."""
    return pickle.loads(b64decode(description))
