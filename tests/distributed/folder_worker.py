"""Started by torchrun on 4 ranks, TP=2 and PP=2: what of a model folder each rank reads and writes.

Every rank's figures, in bytes, go into the file named by the first argument.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from areal_mega.config.options import ParallelOptions, PolicyOptions, RuntimeOptions
from areal_mega.runtime import distributed


def main(out: Path, source: Path, shard_bytes: int) -> None:
    topology = distributed.initialize(RuntimeOptions(device="cpu"), ParallelOptions(2, 2), seed=1)
    from areal_mega.policy import convert
    from areal_mega.policy.checkpoint_files import HFWeights
    from areal_mega.policy.model import MegatronModel

    figures = {"asked for": 0, "slices": 0, "different slices": 0}
    slices = []
    read, end = HFWeights.read, HFWeights.check_all_used

    def counting(self, box, shape):
        slices.append(box)
        found = read(self, box, shape)
        figures["asked for"] += found.nbytes
        return found

    def measuring(self, used):
        figures["touched"] = resident(source)  # while the files are still mapped
        end(self, used)

    HFWeights.read, HFWeights.check_all_used = counting, measuring  # type: ignore[method-assign]
    before = read_by_calls()
    model = MegatronModel(
        topology, str(source), PolicyOptions(), dtype="float32", optimizer=None, head="logprob", seed=1
    )
    figures["read by calls"] = read_by_calls() - before
    figures |= {"slices": len(slices), "different slices": len(set(slices))}
    figures["parameters"] = sum(p.nbytes for p in model.chunks[0].parameters())

    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory("VmRSS")
    target = out.with_name("saved")
    model.save(target, shard_bytes=shard_bytes)
    figures["save, memory above"] = memory("VmHWM") - before

    everyone = topology.gather(figures)
    found = list(convert.differences(source, target, topology))
    if topology.is_main:
        out.write_text(json.dumps({"ranks": everyone, "differences": found}))
    topology.barrier()
    distributed.shutdown()


def resident(folder: Path) -> int:
    """Bytes of the folder's files in this process's memory map: pages it has touched, and the kernel's neighbours."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = str(folder) in line
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def read_by_calls() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def memory(name: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
