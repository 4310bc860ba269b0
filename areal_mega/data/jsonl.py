"""Data sets as prompts for reinforcement learning, and as sequences for SFT.

Which files can be read: `areal_mega.data.records`. What their lines look like: `areal_mega.data.formats`. How a
question becomes a prompt: `areal_mega.data.prompt_types`.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from areal_mega.config.errors import UserError
from areal_mega.config.options import DataSetOptions
from areal_mega.data.formats import FORMATS, Line, LineError, NoAnswerError, format_of
from areal_mega.data.prompt_types import PROMPT_TYPES, question_of
from areal_mega.data.records import read_records
from areal_mega.data.sample import Prompt


class UnusableLineError(UserError):
    """A line is well formed but cannot be used: too long, or without an answer."""


def read_prompts(
    path: str,
    option: str,
    tokenizer: Any,
    max_tokens: int,
    how: DataSetOptions | None = None,
    skip_unusable: bool = False,
) -> list[Prompt]:
    """All problems of a data set, with their prompts as tokens.

    option: the name of the option that holds ``path``, for messages. how: its format, prompt type and task; by
    default its fields say the format, and the model's chat template makes the prompts. skip_unusable: leave out lines
    that are too long or have no answer, and say how many.

    Raises:
        UserError: the file is missing or empty; a line is not JSON, lacks a field, or its prompt is empty or
            longer than ``max_tokens``. File and line are named.
    """
    prompts, skipped = [], Skipped(option, skip_unusable)
    for number, (where, record) in enumerate(read_records(path, option), 1):
        try:
            line = _line(record, where, how)
            text, tokens = prompt_of(line, where, tokenizer, how)
            if len(tokens) > max_tokens:
                raise UnusableLineError(
                    f"{where}: the prompt has {len(tokens)} tokens, more than rollout.max_prompt_tokens="
                    f"{max_tokens}. Raise the option, remove the line or set data.unusable=skip."
                )
        except UnusableLineError as error:
            skipped.add(error)
            continue
        prompts.append(
            Prompt(
                id=line.id or str(number),
                tokens=tokens,
                text=text,
                answer=line.answers[0],
                metadata=line.metadata,
                solutions=line.answers[1:],
                task=(how and how.task) or line.task,
                source=where,
                messages=_messages(line, how.prompt_type if how else None),
            )
        )
    skipped.say(len(prompts))
    return prompts


def read_answers(
    path: str,
    option: str,
    tokenizer: Any,
    max_tokens: int,
    how: DataSetOptions | None = None,
    skip_unusable: bool = False,
) -> list[dict[str, list]]:
    """All sequences for SFT: ``tokens`` and ``loss_mask`` (True on the answer and its end token).

    What is learned is the answer; of GSM8K and MATH the whole solution.

    Raises:
        UserError: as `read_prompts`.
    """
    sequences, skipped = [], Skipped(option, skip_unusable)
    for where, record in read_records(path, option):
        try:
            line = _line(record, where, how)
            _, prompt = prompt_of(line, where, tokenizer, how)
            learned = line.answers[0] if line.learned is None else line.learned
            sequences.append(answered(prompt, learned, where, tokenizer, max_tokens))
        except UnusableLineError as error:
            skipped.add(error)
    skipped.say(len(sequences))
    return sequences


def answered(prompt: list[int], answer: str, where: str, tokenizer: Any, max_tokens: int) -> dict[str, list]:
    """A sequence: ``tokens`` of prompt, answer and end, and ``loss_mask``, True on the answer and its end token.

    Raises:
        UnusableLineError: it has more than max_tokens.
    """
    ended = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    length = len(prompt) + len(ended)
    if length > max_tokens:
        raise UnusableLineError(
            f"{where}: prompt and answer have {length} tokens, more than max_tokens={max_tokens}. "
            "Raise the option, remove the line or set data.unusable=skip."
        )
    return {"tokens": prompt + ended, "loss_mask": [False] * len(prompt) + [True] * len(ended)}


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


@dataclass
class Skipped:
    """Lines that are left out, if that is allowed."""

    option: str
    allowed: bool
    count: int = 0
    first: str = ""

    def add(self, error: UnusableLineError) -> None:
        if not self.allowed:
            raise error
        self.count += 1
        self.first = self.first or str(error)

    def say(self, kept: int) -> None:
        """Tell how many; once, where several ranks read the same."""
        if not kept:
            raise UserError(f"{self.option}: none of its {self.count} lines can be used; the first: {self.first}")
        if self.count and os.environ.get("RANK", "0") == "0":
            print(f"{self.option}: {self.count} lines left out; the first: {self.first}", file=sys.stderr, flush=True)


def _line(record: Any, where: str, how: DataSetOptions | None) -> Line:
    name = how.format if how is not None and how.format != "auto" else format_of(record)
    try:
        return FORMATS[name].read(record)
    except NoAnswerError as error:
        raise UnusableLineError(f"{where}: {error}") from None
    except LineError as error:
        raise UserError(f"{where}: {error}") from None
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{where}: is not of the format {name}: {FORMATS[name].help}.") from None


def prompt_of(line: Line, where: str, tokenizer: Any, how: DataSetOptions | None) -> tuple[str, list[int]]:
    """The prompt as text and as tokens.

    Raises:
        UserError: the line has messages and the tokenizer no chat template for them, or the prompt is empty.
    """
    text, templated = _prompt_text(line, where, tokenizer, how.prompt_type if how else None)
    # A chat template writes the special tokens itself; without one the tokenizer adds what the model expects.
    special = not templated and not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))
    tokens = tokenizer(text, add_special_tokens=special)["input_ids"]
    if not tokens:
        raise UserError(f"{where}: the prompt has no tokens; write one or remove the line.")
    return text, tokens


def _prompt_text(line: Line, where: str, tokenizer: Any, prompt_type: str | None) -> tuple[str, bool]:
    """The prompt, and whether the model's chat template made it."""
    if prompt_type is None:
        if line.templated or (tokenizer.chat_template is None and line.messages is None):
            return line.question, False
        prompt_type = "chat"
    kind = PROMPT_TYPES[prompt_type]
    question = question_of(line.question) if line.templated else line.question
    if not kind.chat:
        if line.messages and len(line.messages) > 1:
            raise UserError(
                f"{where}: has several messages, which only the prompt types that use a chat template take."
            )
        return kind.around(question), False
    if tokenizer.chat_template is None:
        what = "has messages" if line.messages else f"prompt type {prompt_type} needs a chat template"
        raise UserError(f"{where}: {what}, but the model's tokenizer has no chat template; use prompt.")
    messages = _messages(line, prompt_type)
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), True
    except Exception as error:
        raise UserError(f"{where}: the chat template cannot take messages: {error}.") from None


def _messages(line: Line, prompt_type: str | None) -> list[dict[str, Any]]:
    """The problem as a conversation, its last message with what the prompt type puts around a question."""
    question = question_of(line.question) if line.templated else line.question
    messages = line.messages or [{"role": "user", "content": question}]
    return [*messages[:-1], {**messages[-1], "content": PROMPT_TYPES[prompt_type or "chat"].around(question)}]
