"""Process groups of training ranks and engines' workers, which have no default group in common.

A meeting: all say in a store that they are there, and connect when the main rank says that all are. So nobody waits
for one that died on the way.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = timedelta(seconds=300)
CONNECTING = timedelta(seconds=30)  # once all are there
POLL_SECONDS = 0.01

# What torch calls a backend: it has send and recv, and no name anywhere.
Peers = Any


def store_at(host: str, port: int) -> dist.Store:
    """The store of a run's meetings, for whoever does not hold it."""
    return dist.TCPStore(host, port, is_master=False, timeout=TIMEOUT)


def convene(store: dist.Store, name: str, world: int, hopeless: Callable[[], bool]) -> None:
    """The main rank's, before it joins as rank 0: begin the meeting when the others are there, or call it off when it
    is hopeless or takes too long."""
    store = dist.PrefixStore(name, store)
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    expected = [f"here/{rank}" for rank in range(1, world)]
    while not (complete := store.check(expected)):
        if hopeless() or time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    store.set("begins", str(int(complete)))


def join(store: dist.Store, name: str, rank: int, world: int, device: torch.device) -> Peers | None:
    """The group ``name`` of ``world`` processes that call this with the same store; None if it was called off or one
    was lost while it was made.

    The group is known to nobody else: it is used by its own ``send`` and ``recv``, and dies with its last reference.
    """
    store = dist.PrefixStore(name, store)
    store.set(f"here/{rank}", "")
    store.wait(["begins"], TIMEOUT + CONNECTING)
    if store.get("begins") != b"1":
        return None
    try:
        if device.type == "cpu":
            return dist.ProcessGroupGloo(store, rank, world, CONNECTING)
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = TIMEOUT
        return dist.ProcessGroupNCCL(store, rank, world, options)
    except RuntimeError:
        return None
