"""Process groups of training ranks and an engine's workers, which have no default group in common."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = timedelta(seconds=300)


# What torch calls a backend: it has send and recv, and no name anywhere.
Peers = Any


def join(host: str, port: int, name: str, rank: int, world: int, device: torch.device) -> Peers:
    """The group ``name`` of ``world`` processes that call this with the same store; returns when all have.

    The group is known to nobody else: it is used by its own ``send`` and ``recv``, and dies with its last reference.
    """
    store = dist.PrefixStore(name, dist.TCPStore(host, port, is_master=False, timeout=TIMEOUT))
    if device.type == "cpu":
        return dist.ProcessGroupGloo(store, rank, world, TIMEOUT)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = TIMEOUT
    return dist.ProcessGroupNCCL(store, rank, world, options)
