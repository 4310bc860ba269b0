"""Turn a training checkpoint into a Hugging Face folder, or the other way round, or change type and size of files.

    python tools/convert.py outputs/latest my-model                       # the run's latest checkpoint
    python tools/convert.py my-model smaller --dtype bfloat16 --shard-gb 2
    python tools/convert.py my-model runs/new --to training               # a checkpoint of step 0 in a run directory
    python tools/convert.py my-model outputs/latest --only-verify         # compare, element by element

No GPU and no engine is needed. A model that is too large for one process: torchrun --nproc-per-node 4 tools/convert.py
... --tensor 2 --pipeline 2. Exit status 1: something differs, or could not be used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from areal_mega.config.errors import UserError
from areal_mega.config.options import ParallelOptions, RuntimeOptions


def main() -> int:
    arguments = parse_arguments()
    try:
        return run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="Hugging Face folder, training checkpoint or run directory")
    parser.add_argument("target", type=Path, help="what is written; with --only-verify what the source is compared to")
    parser.add_argument("--to", choices=("hf", "training"), default="hf", help="form of the target")
    parser.add_argument("--model", choices=("policy", "critic"), default="policy", help="which one of a checkpoint")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="type of the tensors; else as now")
    parser.add_argument("--shard-gb", type=float, default=4.0, help="largest file of a Hugging Face folder, in GiB")
    parser.add_argument("--verify", action="store_true", help="afterwards compare target and source by element")
    parser.add_argument("--only-verify", action="store_true", help="write nothing, compare the two")
    parser.add_argument("--tensor", type=int, default=1, help="tensor-parallel size, under torchrun")
    parser.add_argument("--pipeline", type=int, default=1, help="pipeline-parallel size, under torchrun")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each process")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> int:
    from areal_mega.runtime import distributed

    parallel = ParallelOptions(arguments.tensor, arguments.pipeline)
    topology = distributed.initialize(RuntimeOptions("cpu", arguments.threads), parallel, seed=1)

    # Imported here: Megatron must not be loaded before the device layer is set up.
    from areal_mega.policy import convert

    source, target = arguments.source, arguments.target
    if not arguments.only_verify:
        if target.exists():
            raise UserError(f"{target} exists already; choose another name, or remove it")
        if arguments.to == "training":
            if convert.checkpoint_at(source):
                raise UserError(f"{source} is a training checkpoint already; any layout can resume from it")
            if arguments.dtype == "float16":
                raise UserError("--dtype float16 cannot be trained; use float32 or bfloat16")
            convert.to_training(source, target, topology, model=arguments.model, dtype=arguments.dtype)
        else:
            size = int(arguments.shard_gb * 2**30)
            convert.to_hugging_face(
                source, target, topology, model=arguments.model, dtype=arguments.dtype, shard_bytes=size
            )
    found = []
    if arguments.verify or arguments.only_verify:
        found = list(convert.differences(source, target, topology, arguments.model))
    for line in found:
        print(line)
    if topology.is_main:
        compared = arguments.verify or arguments.only_verify
        print(f"{source} and {target} {'differ' if found else 'are equal'}" if compared else f"wrote {target}")
    status = topology.broadcast(1 if found else 0)
    distributed.shutdown()
    return status


if __name__ == "__main__":
    sys.exit(main())
