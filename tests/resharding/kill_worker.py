"""Started by torchrun: many updates of two real engines, some of which are killed in the middle of one.

Every update has other weights at some places, goes as a delta where the transport can do that, and is compared by
checksums. Afterwards each engine is asked which version it serves. The main rank writes ``OUT``: what the engines said
after each update, which part of the elements each update found changed, and how often the engines were started.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from resharding.sync_worker import answer, make_transport, server

from areal_mega.config.options import ParallelOptions, PolicyOptions, ReshardingOptions, RuntimeOptions
from areal_mega.resharding.deployment import deploy
from areal_mega.resharding.layouts import SGLangGrid
from areal_mega.resharding.weight_sync import WeightSync
from areal_mega.rollout.server import SGLangServer
from areal_mega.runtime import distributed


def main(job: dict[str, Any]) -> None:
    """job: start (folder of the model), updates, kills (numbers of updates), transport, out; more as for `server`."""
    topology = distributed.initialize(RuntimeOptions(device="cpu"), ParallelOptions(tensor=2), seed=1)
    from areal_mega.policy.model import MegatronModel

    grid = SGLangGrid(**job["engines"], cpu=True)
    chance = random.Random(1)
    with ExitStack() as stack:
        engines = [stack.enter_context(server(job, number)) for number in range(grid.count)] if topology.is_main else []
        topology.barrier()
        options = PolicyOptions(parallel=topology.parallel)
        model = MegatronModel(
            topology, job["start"], options, dtype=job["dtype"], optimizer=None, head="logprob", seed=1
        )
        colocated, weights = job["transport"] == "colocated", model.held_weights
        places = topology.gather(model.place)
        deployment = deploy(model.hf, places, grid, colocated=colocated, per_node=topology.world)
        common = topology, deployment, weights, 60_000
        transport = make_transport(job["transport"], common, Path(job["start"]), remember=True)
        how = ReshardingOptions(verify="always", delta=not colocated)
        weight_sync = WeightSync(topology, deployment, transport, how, engines)
        said: list[Any] = []
        changed: list[float] = []
        for version in range(1, job["updates"] + 1):
            for weight in weights.values():
                weight.view(-1)[version % 7 :: 20].mul_(1.1)
            if version in job["kills"] and topology.is_main:
                Thread(target=kill, args=(chance.choice(engines), chance.uniform(0, 0.05))).start()
            report = weight_sync.send(version)
            while report.failures:  # on every rank the same
                for number in report.failures if engines else ():
                    engines[number].restart()
                report = weight_sync.send(version, sorted(report.failures))
            assert report.verified
            changed.append(1.0 if report.changed is None else report.changed)
            said.append([[engine.weight_version(), *answer(engine)["versions"]] for engine in engines])
        if topology.is_main:
            found = {"said": said, "changed": changed, "starts": [engine.starts for engine in engines]}
            Path(job["out"]).write_text(json.dumps(found))
        topology.barrier()
    distributed.shutdown()


def kill(engine: SGLangServer, seconds: float) -> None:
    """End all processes of the engine, as the machine would when memory runs out."""
    guard = str(engine._guard.pid)
    group = subprocess.run(["pgrep", "-P", guard], capture_output=True, text=True, check=True).stdout.split()[0]
    time.sleep(seconds)
    os.killpg(int(group), signal.SIGKILL)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
