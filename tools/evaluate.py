"""Evaluates a model on many benchmarks: python tools/evaluate.py model.path=FOLDER benchmarks=[math-500,aime24]

--list: the benchmarks.  --help: all options, with their defaults.
The same command again goes on where it was ended.
"""

from __future__ import annotations

import sys

from areal_mega.config.checks import check, resolve_device
from areal_mega.config.command_line import parse
from areal_mega.config.errors import UserError


def main() -> int:
    if "--list" in sys.argv[1:]:
        list_benchmarks()
        return 0
    try:
        run(sys.argv[1:])
    except UserError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def run(arguments: list[str]) -> None:
    options = parse("evaluate", arguments)

    import torch

    cuda = torch.cuda.is_available()
    needed = options.rollout.engines * options.rollout.tensor
    on_gpu = resolve_device(options.runtime.device, cuda) == "cuda"
    check(options, torch.cuda.device_count() if on_gpu else needed, cuda)

    from areal_mega.evaluation.run import evaluate

    evaluate(options, cuda)


def list_benchmarks() -> None:
    from areal_mega.data.records import HUB
    from areal_mega.evaluation.benchmarks import BENCHMARKS, PROCEDURAL

    width = max(map(len, BENCHMARKS))
    for name, benchmark in BENCHMARKS.items():
        place = f"{benchmark.file}.jsonl in data.folder, or {HUB}{benchmark.hub}"
        print(f"{name:<{width}}  {benchmark.verifier:<6}  {place}")
    print(f"{PROCEDURAL}TASK  problems of reasoning-gym, made from the seed")
    print("or a file in any of the formats of docs/data.md, judged by reward.name")


if __name__ == "__main__":
    sys.exit(main())
