"""Data sets: one problem a line.

A line has ``prompt`` (text, put into the model's chat template as the user's message) or ``messages`` (the
chat itself), and ``answer``. For SFT the answer is what the model learns to say.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from areal_mega.config.errors import UserError
from areal_mega.data.sample import Prompt


def read_prompts(path: str, option: str, tokenizer: Any, max_tokens: int) -> list[Prompt]:
    """All problems of a JSONL file, with their prompts as tokens.

    option: the name of the option that holds ``path``, for messages.

    Raises:
        UserError: the file is missing or empty; a line is not JSON, lacks a field, or its prompt is empty or
            longer than ``max_tokens``. File and line are named.
    """
    prompts = []
    for where, line in _lines(path, option):
        text, tokens = _prompt(line, where, tokenizer)
        if len(tokens) > max_tokens:
            raise UserError(
                f"{where}: the prompt has {len(tokens)} tokens, more than rollout.max_prompt_tokens="
                f"{max_tokens}. Raise the option or remove the line."
            )
        metadata = {k: v for k, v in line.items() if k not in ("prompt", "messages", "answer", "id")}
        prompts.append(
            Prompt(
                id=str(line.get("id", where.rsplit(":", 1)[1])),
                tokens=tokens,
                text=text,
                answer=_text_field(line, "answer", where),
                metadata=metadata,
            )
        )
    return prompts


def read_answers(path: str, option: str, tokenizer: Any, max_tokens: int) -> list[dict[str, list]]:
    """All sequences of an SFT file: ``tokens`` and ``loss_mask`` (True on the answer and its end token).

    Raises:
        UserError: as `read_prompts`.
    """
    sequences = []
    for where, line in _lines(path, option):
        _, prompt = _prompt(line, where, tokenizer)
        answer = tokenizer(_text_field(line, "answer", where), add_special_tokens=False)["input_ids"]
        answer = [*answer, tokenizer.eos_token_id]
        if len(prompt) + len(answer) > max_tokens:
            raise UserError(
                f"{where}: prompt and answer have {len(prompt) + len(answer)} tokens, more than "
                f"max_tokens={max_tokens}. Raise the option or remove the line."
            )
        mask = [False] * len(prompt) + [True] * len(answer)
        sequences.append({"tokens": prompt + answer, "loss_mask": mask})
    return sequences


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write a JSONL file; it appears complete or not at all."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    temporary.replace(path)


def endless_batches(items: list, size: int, shuffle: bool, seed: int, start: int = 0) -> Iterator[list]:
    """Batches of ``size`` items, pass after pass; each pass is shuffled by its own seed.

    start: how many items were drawn already; what follows depends on nothing else.
    """
    queue: list = []
    epoch, drawn = divmod(start, len(items))
    while True:
        while len(queue) < size:
            order = list(range(len(items)))
            if shuffle:
                random.Random(f"{seed}-{epoch}").shuffle(order)
            queue += [items[i] for i in order[drawn:]]
            epoch, drawn = epoch + 1, 0
        batch, queue = queue[:size], queue[size:]
        yield batch


def _lines(path: str, option: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line as JSON, with ``file:line`` for messages."""
    if not Path(path).is_file():
        raise UserError(f"{option}={path}: no such file.")
    empty = True
    with open(path, "rb") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            empty, where = False, f"{path}:{number}"
            try:
                line = json.loads(text.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: not UTF-8 (byte {error.start + 1} of the line).") from None
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: not JSON: {error.msg} (column {error.colno}).") from None
            if not isinstance(line, dict):
                raise UserError(f"{where}: expected a JSON object, found {type(line).__name__}.")
            yield where, line
    if empty:
        raise UserError(f"{option}={path}: the file has no lines.")


def _prompt(line: dict[str, Any], where: str, tokenizer: Any) -> tuple[str, list[int]]:
    """The prompt as text and as tokens."""
    text = _prompt_text(line, where, tokenizer)
    # A chat template writes the special tokens itself; without one the tokenizer adds what the model expects.
    tokens = tokenizer(text, add_special_tokens=tokenizer.chat_template is None)["input_ids"]
    if not tokens:
        raise UserError(f"{where}: the prompt has no tokens; write one or remove the line.")
    return text, tokens


def _prompt_text(line: dict[str, Any], where: str, tokenizer: Any) -> str:
    messages = line.get("messages")
    if messages is None:
        messages = [{"role": "user", "content": _text_field(line, "prompt", where)}]
    if tokenizer.chat_template is None:
        if "messages" in line:
            raise UserError(f"{where}: has messages, but the model's tokenizer has no chat template; use prompt.")
        return messages[0]["content"]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:
        raise UserError(f"{where}: the chat template cannot take messages: {error}.") from None


def _text_field(line: dict[str, Any], name: str, where: str) -> str:
    if name not in line:
        raise UserError(f"{where}: field '{name}' is missing; the line has: {', '.join(line) or 'nothing'}.")
    if not isinstance(line[name], str):
        raise UserError(f"{where}: field '{name}' must be text, found {type(line[name]).__name__}.")
    return line[name]
