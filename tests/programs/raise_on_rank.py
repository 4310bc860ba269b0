"""A program in which the last rank fails while rank 0's engine is up and waits for work.

Before, it waits for rank 0 longer than collectives may take.
"""

import sys
import time

from areal_mega.trainers.launch import launch


def run(options, topology, directory):
    from areal_mega.rollout.server import SGLangServer

    server = None
    started = time.monotonic()
    if topology.is_main:
        log = directory / "engine.log"
        server = SGLangServer(options.model.path, options.rollout, dtype="float32", device="cpu", seed=1, log_path=log)
        server.wait_ready()
        time.sleep(max(0, started + 1.1 * options.runtime.timeout - time.monotonic()))
        print("engine is up", flush=True)
    topology.barrier()
    if topology.rank == topology.world - 1:
        raise ArithmeticError("this rank cannot go on")
    topology.barrier()


if __name__ == "__main__":
    launch("ppo", run, sys.argv[1:])
