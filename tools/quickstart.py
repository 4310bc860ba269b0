"""From nothing to a model that has learned: ``make quickstart``, or python -m areal_mega.tools.quickstart

1. Writes problems, a corpus (a textbook, then a careless pupil), a small tokenizer and a random Qwen3-shaped model.
2. Fine-tunes the model on the corpus (tools/train_sft.py): now it calculates as carelessly as the pupil.
3. Trains it by PPO with a verifier (tools/train_ppo.py): now it calculates. Another recipe may be named, such as
   +experiment=quickstart-dpo; then it is trained by that recipe's program.

Steps 1 and 2 are kept in .cache/quickstart of the working directory and done once. All arguments go to step 3. With
+experiment=quickstart-tools or quickstart-agent the task is to use a calculator, kept in .cache/quickstart-tools.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from areal_mega.config.command_line import experiments, tool_of
from areal_mega.runtime.torchrun import torchrun

HELD_OUT = 256
TEXTBOOK_LINES = 153_600
PUPIL_LINES = 10_240
SLIP_RATE = 0.75
PRODUCTS = 20_000
TEXTBOOK_PRODUCTS = 12_800
PUPIL_PRODUCTS = 10_240
ESTIMATE_RATE, TYPO_RATE = 0.8, 0.1


@dataclass(frozen=True)
class Task:
    """A folder under .cache, what is written there, and the recipe that makes a base model of it."""

    name: str
    make_inputs: Callable[[Path], None]

    @property
    def folder(self) -> Path:
        return Path(".cache") / self.name

    @property
    def sft(self) -> str:
        return f"{self.name}-sft"


def main() -> int:
    arguments = sys.argv[1:]
    experiment = next((a.partition("=")[2] for a in arguments if a.startswith("+experiment=")), None)
    if experiment is None:
        experiment = "quickstart"
        arguments = ["+experiment=quickstart", *arguments]
    task = TOOLS if experiment in ("quickstart-tools", "quickstart-agent") else SUMS
    if not (task.folder / "base").exists():
        print("quickstart: writing problems, tokenizer and a random model ...", flush=True)
        task.folder.mkdir(parents=True, exist_ok=True)
        task.make_inputs(task.folder)
        print("quickstart: fine-tuning the base model on a careless pupil's answers ...", flush=True)
        status = make_base(task)
        if status:
            return status
    if task is SUMS and not (task.folder / "pairs.jsonl").exists():
        make_pairs(task.folder)
    print(f"quickstart: training with {' '.join(arguments)} ...", flush=True)
    return torchrun(f"areal_mega.tools.{tool_for(experiment)}", *arguments)


def tool_for(experiment: str) -> str:
    """The program of a recipe; where there is none of that name, one that says so."""
    recipe = experiments().get(experiment)
    return tool_of(recipe["program"]) if recipe else "train_ppo"


def make_sums(folder: Path) -> None:
    """Data sets, tokenizer and the random model."""
    from areal_mega.data import arithmetic

    train, held_out = arithmetic.problems(seed=0, held_out=HELD_OUT)
    arithmetic.write_prompts(folder / "train.jsonl", train)
    arithmetic.write_prompts(folder / "held_out.jsonl", held_out)
    chapters = [(TEXTBOOK_LINES, 0.0), (PUPIL_LINES, SLIP_RATE)]
    arithmetic.write_corpus(folder / "corpus.jsonl", train, chapters, seed=0)
    make_random_model(folder / "random", [p.question for p in train[:1000]])


def make_products(folder: Path) -> None:
    """The same for the calculator."""
    from areal_mega.data import calculator

    train, held_out = calculator.problems(seed=0, count=PRODUCTS, held_out=HELD_OUT)
    calculator.write_prompts(folder / "train.jsonl", train)
    calculator.write_prompts(folder / "held_out.jsonl", held_out)
    chapters = [(TEXTBOOK_PRODUCTS, 0.0, 0.0), (PUPIL_PRODUCTS, ESTIMATE_RATE, TYPO_RATE)]
    calculator.write_corpus(folder / "corpus.jsonl", train, chapters, seed=0)
    make_random_model(folder / "random", [text for p in train[:1000] for text in (p.question, p.call, "<|tool|>")])


SUMS = Task("quickstart", make_sums)
TOOLS = Task("quickstart-tools", make_products)


def make_pairs(folder: Path) -> None:
    """Preference pairs of right answers and slips."""
    from areal_mega.data import arithmetic

    train, held_out = arithmetic.problems(seed=0, held_out=HELD_OUT)
    arithmetic.write_pairs(folder / "held_out_pairs.jsonl", held_out, seed=1)
    arithmetic.write_pairs(folder / "pairs.jsonl", train, seed=0)


def make_random_model(folder: Path, texts: list[str]) -> None:
    """A Qwen3-shaped model of 1.3 million parameters with a tokenizer of its own."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from areal_mega.data.small_tokenizer import small_tokenizer

    tokenizer = small_tokenizer(texts, 384)
    tokenizer.save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=480,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=40,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.06,  # 0.02 is for wide models: from there this one needs twice the steps to calculate
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)


def make_base(task: Task) -> int:
    """Fine-tune the random model; the result becomes the base model of the task's experiments."""
    output, unfinished = task.folder / "sft", task.folder / ".base"
    for leftover in (output, unfinished):
        shutil.rmtree(leftover, ignore_errors=True)
    status = torchrun("areal_mega.tools.train_sft", f"+experiment={task.sft}", f"output={output}", "run_name=base")
    if status == 0:
        shutil.copytree(output / "base" / "model", unfinished)
        unfinished.rename(task.folder / "base")
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
