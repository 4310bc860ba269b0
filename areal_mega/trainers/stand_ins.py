"""Stand-ins for a recipe's model and data, so that its first steps run anywhere: sums in each format, a tiny model."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from areal_mega.config.errors import UserError
from areal_mega.config.options import CommonOptions, DataSetOptions, DPOOptions, PPOOptions, PreferenceOptions
from areal_mega.data.formats import ASSISTANT, USER
from areal_mega.data.jsonl import write_lines
from areal_mega.data.mixing import training_sets
from areal_mega.data.prompt_types import PROMPT_TYPES
from areal_mega.resharding.known_models import known_model, known_name

LINES = 64
VOCABULARY = 1024
# Of a model whose family is not known from its name.
FAMILY = "qwen2"
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}


def with_stand_ins(options: CommonOptions) -> Any:
    """The same options with stand-ins for ``model.path`` and all data sets; what is missing is made.

    Every rank calls it: each makes what is missing beside its place and moves it there, whoever comes first.
    """
    folder = Path(str(options.stand_ins))
    folder.mkdir(parents=True, exist_ok=True)
    model = _place(folder / f"model-{_family(options.model.path)}", lambda place: _make_model(place, options))

    def data(how: DataSetOptions) -> str:
        task = how.task or "math"
        format = "pairs" if isinstance(options, PreferenceOptions) else how.format
        file = folder / f"{format}-{task.replace(':', '.')}.jsonl"
        return str(_place(file, lambda place: write_lines(place, _records(format, task))))

    first, *others = (replace(how, path=data(how)) for _, how in training_sets(options.data))
    validation = options.data.validation and first.path
    return replace(
        options,
        model=replace(options.model, path=str(model)),
        data=replace(options.data, train=first.path, validation=validation, mix=others),
        **_with_one_model(options, str(model)),
    )


def _with_one_model(options: CommonOptions, model: str) -> dict[str, Any]:
    """The options that name a second model, with the stand-in."""
    if isinstance(options, PPOOptions) and options.algorithm.reference_path:
        return {"algorithm": replace(options.algorithm, reference_path=model)}
    if isinstance(options, DPOOptions) and options.reference_path:
        return {"reference_path": model}
    return {}


def _place(final: Path, make: Callable[[Path], None]) -> Path:
    if not final.exists():
        temporary = final.with_name(f".{os.getpid()}-{final.name}")
        make(temporary)
        try:
            temporary.rename(final)
        except OSError:  # another rank was first
            shutil.rmtree(temporary)
    return final


def _family(path: str) -> str:
    name = known_name(path)
    return known_model(name).model_type if name else FAMILY


def _make_model(folder: Path, options: CommonOptions) -> None:
    """A random model of the family that the recipe's has, with a tokenizer that is short on all stand-ins' prompts."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from areal_mega.data.small_tokenizer import small_tokenizer

    templates = [kind.before + kind.after for kind in PROMPT_TYPES.values()]
    tokenizer = small_tokenizer([*templates * 20, *(q for q, _ in _sums())], VOCABULARY)
    family = _family(options.model.path)
    config = AutoConfig.for_model(
        family,
        **SIZES,
        **(EXPERTS if "moe" in family else {}),
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _sums() -> Iterator[tuple[str, str]]:
    """Questions and answers."""
    rng = random.Random(0)
    for _ in range(LINES):
        a, b = rng.randrange(10, 100), rng.randrange(10, 100)
        yield f"What is {a} + {b}?", str(a + b)


def _records(format: str, task: str) -> Iterator[Any]:
    if format not in _RECORDS:
        raise UserError(f"There is no stand-in for data.format={format}; there are {', '.join(_RECORDS)}.")
    for number, (question, answer) in enumerate(_sums()):
        record = _RECORDS[format](question, answer)
        if task == "code":
            program = f"print({answer})"
            record |= {"task": "code", "query_id": str(number), "solutions": [program], "input_output": _tests(answer)}
        yield record


def _tests(answer: str) -> str:
    return json.dumps({"inputs": [""], "outputs": [answer]})


def _templated(question: str) -> str:
    return f"{USER}{question}{ASSISTANT}<think>\n"


_RECORDS: dict[str, Callable[[str, str], Any]] = {
    "auto": lambda q, a: {"prompt": q, "answer": a},
    "ours": lambda q, a: {"prompt": q, "answer": a},
    "boba": lambda q, a: {"prompt": _templated(q), "query_id": q, "task": "math", "solutions": [rf"\boxed{{{a}}}"]},
    "boba-sft": lambda q, a: {"prompt": _templated(q), "answer": a},
    "gsm8k": lambda q, a: {"question": q, "answer": f"#### {a}"},
    "math": lambda q, a: {"problem": q, "answer": a},
    "deepscaler": lambda q, a: {"problem": q, "answer": a},
    "dapo": lambda q, a: {
        "prompt": [{"role": "user", "content": q}], "ability": "MATH", "reward_model": {"ground_truth": a}
    },
    "pairs": lambda q, a: {"prompt": q, "chosen": a, "rejected": str(int(a) + 1)},
    "orz": lambda q, a: [{"value": q}, {"ground_truth": {"value": a}}],
}  # fmt: skip
