"""Started by `reshard` under torchrun: updates a real engine in every way, in turn, and writes what each took."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from areal_mega.bench.full_gather import FullWeightTransport
from areal_mega.config.options import ParallelOptions, PolicyOptions, ReshardingOptions, RolloutOptions, RuntimeOptions
from areal_mega.resharding.colocated import ColocatedTransport
from areal_mega.resharding.deployment import deploy
from areal_mega.resharding.layouts import SGLangGrid, file_layout
from areal_mega.resharding.weight_sync import WeightSync
from areal_mega.rollout.server import SGLangServer, free_port
from areal_mega.runtime import distributed

GROUP = "areal_bench"
BUCKET_BYTES = 512 << 20  # slime's and verl's default


def main(job: dict[str, Any]) -> None:
    topology = distributed.initialize(RuntimeOptions(device="cpu"), ParallelOptions(**job["parallel"]), seed=1)
    rollout = RolloutOptions(tensor=job["engine_tensor"], max_prompt_tokens=32, max_new_tokens=32, start_timeout=600)
    with engine_of(job, rollout) if topology.is_main else nullcontext() as engine:
        topology.barrier()
        bench = Bench(topology, job, rollout, engine)
        seconds = bench.run(job["rounds"])
        if topology.is_main:
            found = {
                "seconds": seconds,
                "report": asdict(bench.report),
                "model_bytes": bench.model_bytes,
                "load": os.getloadavg()[0],
            }
            (Path(job["folder"]) / "found.json").write_text(json.dumps(found))
        topology.barrier()
    distributed.shutdown()


def engine_of(job: dict[str, Any], rollout: RolloutOptions) -> SGLangServer:
    log = Path(job["folder"]) / "engine.log"
    return SGLangServer(job["model"], rollout, dtype=job["dtype"], device="cpu", seed=1, log_path=log)


class Bench:
    """All ways of updating one engine."""

    def __init__(
        self, topology: distributed.Topology, job: dict[str, Any], rollout: RolloutOptions, engine: SGLangServer | None
    ) -> None:
        from areal_mega.policy.model import MegatronModel

        self.topology, self.engine, self.version = topology, engine, 0
        self.folder = Path(job["folder"]) / "published"
        options = PolicyOptions(parallel=topology.parallel)
        self.model = MegatronModel(
            topology, job["model"], options, dtype=job["dtype"], optimizer=None, head="logprob", seed=1
        )
        grid = SGLangGrid(tp=rollout.tensor, cpu=True)
        places = topology.gather(self.model.place)
        deployment = deploy(self.model.hf, places, grid, colocated=True, per_node=topology.world)
        self.model_bytes = file_layout(self.model.hf).numel * self.model.dtype.itemsize
        transport = ColocatedTransport(topology, deployment, self.model.held_weights, 1 << 30)
        engines = [engine] if engine else []
        self.sync = WeightSync(topology, deployment, transport, ReshardingOptions(verify="never"), engines)
        self.full = FullWeightTransport(engine) if engine else None
        self.group = self.join(rollout.tensor) if engine else None

    def join(self, workers: int) -> dist.ProcessGroup:
        """The group of rank 0 and the engine's workers, as SGLang makes it."""
        from threading import Thread

        from sglang.srt.utils import init_custom_process_group

        assert self.engine
        os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # a store of torchrun's knows nothing of the workers
        port = free_port()
        order = {
            "master_address": "127.0.0.1",
            "master_port": port,
            "rank_offset": 1,
            "world_size": workers + 1,
            "group_name": GROUP,
            "backend": "gloo",
        }
        asking = Thread(target=self.engine.order, args=("/init_weights_update_group", order))
        asking.start()
        group = init_custom_process_group(
            "gloo", f"tcp://127.0.0.1:{port}", world_size=workers + 1, rank=0, group_name=GROUP
        )
        asking.join()
        return group

    def run(self, rounds: int) -> dict[str, list[float]]:
        """Seconds of each round of each method."""
        methods: dict[str, Callable[[], None]] = {
            "planned": self.planned,
            "tensor": self.tensor,
            "distributed": self.distributed,
            "disk": self.disk,
        }
        seconds: dict[str, list[float]] = {name: [] for name in methods}
        for number in range(rounds + 1):
            for name, update in methods.items():
                self.version += 1
                self.topology.barrier()
                started = time.perf_counter()
                update()
                self.topology.barrier()
                if number:  # the first maps memory and connects
                    seconds[name].append(time.perf_counter() - started)
        return seconds

    def planned(self) -> None:
        self.report = self.sync.send(self.version)
        if self.report.failures:
            raise RuntimeError(f"engines failed: {self.report.failures}")

    def tensor(self) -> None:
        if self.full:
            self.full.send(self.model.export(), self.version)
        else:
            self.take_part()

    def distributed(self) -> None:
        if not self.engine:
            self.take_part()
            return
        self.engine.order("/begin_weight_update")
        for bucket in buckets(self.model.export()):
            self.broadcast(bucket)
        self.engine.order("/end_weight_update")

    def broadcast(self, bucket: list[tuple[str, Tensor]]) -> None:
        from threading import Thread

        assert self.engine
        body = {
            "names": [name for name, _ in bucket],
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket],
            "shapes": [list(tensor.shape) for _, tensor in bucket],
            "group_name": GROUP,
            "load_format": "flattened_bucket",
            "weight_version": str(self.version),
        }
        asking = Thread(target=self.engine.order, args=("/update_weights_from_distributed", body))
        asking.start()
        flat = torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for _, tensor in bucket])
        dist.broadcast(flat, src=0, group=self.group)
        asking.join()

    def disk(self) -> None:
        self.model.save(self.folder)
        self.topology.barrier()
        if self.engine:
            order = {"model_path": str(self.folder), "weight_version": str(self.version)}
            self.engine.order("/update_weights_from_disk", order)

    def take_part(self) -> None:
        for _ in self.model.export():
            pass


def buckets(named_tensors: Iterable[tuple[str, Tensor]]) -> Iterable[list[tuple[str, Tensor]]]:
    """Runs of tensors of at most `BUCKET_BYTES`."""
    bucket: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in named_tensors:
        if bucket and size + tensor.nbytes > BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += tensor.nbytes
    if bucket:
        yield bucket


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
