"""Data-parallel ranks as threads of one process."""

import threading
from concurrent.futures import ThreadPoolExecutor


def on_ranks(function, count):
    """``function(rank, all_reduce)`` of each rank; the all-reduce adds up what all ranks bring."""
    brought, barrier = [None] * count, threading.Barrier(count)

    def all_reduce(rank, x):
        brought[rank] = x
        barrier.wait(30)
        total = sum(brought[1:], brought[0])
        barrier.wait(30)
        return total

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda rank: function(rank, lambda x: all_reduce(rank, x)), range(count)))
