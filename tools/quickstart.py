"""From nothing to a model that has learned: ``make quickstart``, or python -m areal_mega.tools.quickstart

1. Writes problems, a corpus (a textbook, then a careless pupil), a small tokenizer and a random Qwen3-shaped model.
2. Fine-tunes the model on the corpus (tools/train_sft.py): now it calculates as carelessly as the pupil.
3. Trains it by PPO with a verifier (tools/train_ppo.py): now it calculates. Another recipe may be named, such as
   +experiment=quickstart-dpo; then it is trained by that recipe's program.

Steps 1 and 2 are kept in .cache/quickstart of the working directory and done once. All arguments go to step 3.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from areal_mega.config.command_line import experiments, tool_of
from areal_mega.runtime.torchrun import torchrun

FOLDER = Path(".cache/quickstart")
HELD_OUT = 256
TEXTBOOK_LINES = 153_600
PUPIL_LINES = 10_240
SLIP_RATE = 0.75


def main() -> int:
    if not (FOLDER / "base").exists():
        print("quickstart: writing problems, tokenizer and a random model ...", flush=True)
        make_inputs()
        print("quickstart: fine-tuning the base model on a careless pupil's answers ...", flush=True)
        status = make_base()
        if status:
            return status
    if not (FOLDER / "pairs.jsonl").exists():
        make_pairs()
    arguments = sys.argv[1:]
    if not any(a.startswith("+experiment=") for a in arguments):
        arguments = ["+experiment=quickstart", *arguments]
    print(f"quickstart: training with {' '.join(arguments)} ...", flush=True)
    return torchrun(f"areal_mega.tools.{tool_for(arguments)}", *arguments)


def tool_for(arguments: list[str]) -> str:
    """The program of the recipe that the arguments name; where there is none of that name, one that says so."""
    name = next(a for a in arguments if a.startswith("+experiment=")).partition("=")[2]
    recipe = experiments().get(name)
    return tool_of(recipe["program"]) if recipe else "train_ppo"


def make_inputs() -> None:
    """Data sets, tokenizer and the random model."""
    from areal_mega.data import arithmetic

    FOLDER.mkdir(parents=True, exist_ok=True)
    train, held_out = arithmetic.problems(seed=0, held_out=HELD_OUT)
    arithmetic.write_prompts(FOLDER / "train.jsonl", train)
    arithmetic.write_prompts(FOLDER / "held_out.jsonl", held_out)
    chapters = [(TEXTBOOK_LINES, 0.0), (PUPIL_LINES, SLIP_RATE)]
    arithmetic.write_corpus(FOLDER / "corpus.jsonl", train, chapters, seed=0)
    make_random_model(FOLDER / "random", [p.question for p in train[:1000]])


def make_pairs() -> None:
    """Preference pairs of right answers and slips."""
    from areal_mega.data import arithmetic

    train, held_out = arithmetic.problems(seed=0, held_out=HELD_OUT)
    arithmetic.write_pairs(FOLDER / "held_out_pairs.jsonl", held_out, seed=1)
    arithmetic.write_pairs(FOLDER / "pairs.jsonl", train, seed=0)


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


def make_base() -> int:
    """Fine-tune the random model; the result becomes the base model of the quickstart experiments."""
    output = FOLDER / "sft"
    for leftover in (output, FOLDER / ".base"):
        shutil.rmtree(leftover, ignore_errors=True)
    status = torchrun("areal_mega.tools.train_sft", "+experiment=quickstart-sft", f"output={output}", "run_name=base")
    if status == 0:
        shutil.copytree(output / "base" / "model", FOLDER / ".base")
        (FOLDER / ".base").rename(FOLDER / "base")
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
