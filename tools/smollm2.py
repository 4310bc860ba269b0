"""GRPO on a real pretrained model: ``make smollm2``, or python -m areal_mega.tools.smollm2

1. Makes the folder of SmolLM2-135M-Instruct (tools/fetch_smollm2.py) and the problems: sums and differences from
   reasoning-gym.
2. Trains with tools/train_ppo.py +experiment=smollm2-135m.

Step 1 is kept in .cache of the working directory and done once. All arguments go to step 2.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import reasoning_gym

from areal_mega.data.jsonl import write_lines
from areal_mega.runtime.torchrun import torchrun

FOLDER = Path(".cache/smollm2")
HELD_OUT = 60


def main() -> int:
    status = subprocess.run([sys.executable, "-P", "-m", "areal_mega.tools.fetch_smollm2"]).returncode
    if status:
        return status
    if not (FOLDER / "train.jsonl").exists():
        write_problems()
    return torchrun("areal_mega.tools.train_ppo", "+experiment=smollm2-135m", *sys.argv[1:])


def write_problems() -> None:
    """All ``chain_sum`` problems of two one-digit terms, split into training and held-out."""
    items = reasoning_gym.create_dataset(
        "chain_sum", size=5000, seed=0, min_terms=2, max_terms=2, min_digits=1, max_digits=1
    )
    distinct = list({item["question"]: item for item in items}.values())
    random.Random(0).shuffle(distinct)
    FOLDER.mkdir(parents=True, exist_ok=True)
    parts = {"held_out": distinct[:HELD_OUT], "train": distinct[HELD_OUT:]}
    for name, problems in parts.items():
        write_lines(FOLDER / f"{name}.jsonl", map(as_chat, problems))


def as_chat(item: dict) -> dict:
    """A reasoning-gym item as one line of a data set."""
    question = f"What is {item['metadata']['expression']}? Reply with the number only."
    return {"prompt": question, "answer": item["answer"], "question": question}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
