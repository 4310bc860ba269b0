"""Preference pairs: two answers to a prompt, of which one was found better.

A record has ``chosen`` and ``rejected``, as texts or as lists of messages that end with the answer. What both answer is
in ``prompt`` (text or messages) or ``messages``, or in the messages of both before their last, or, in the dialogues of
Anthropic's hh-rlhf, in the texts up to their last "Assistant:". A record may also have ``pos_answers`` and
``neg_answers``, lists of which the first are a pair, and so on. ``margin`` says how much better the chosen answer is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from areal_mega.config.errors import UserError
from areal_mega.config.options import DataSetOptions
from areal_mega.data.formats import Line, LineError
from areal_mega.data.jsonl import Skipped, UnusableLineError, answered, prompt_of
from areal_mega.data.packed import PackedBatch
from areal_mega.data.records import read_records

_DIALOGUE = "\n\nAssistant:"


@dataclass(frozen=True)
class Pair:
    """Two sequences with ``tokens`` and ``loss_mask``, see `areal_mega.data.jsonl.answered`. margin: how much better
    the chosen one is, where that counts."""

    chosen: dict[str, list]
    rejected: dict[str, list]
    margin: float = 0.0


def read_pairs(
    path: str,
    option: str,
    tokenizer: Any,
    max_tokens: int,
    how: DataSetOptions | None = None,
    skip_unusable: bool = False,
    with_margin: bool = False,
) -> list[Pair]:
    """All pairs of a data set.

    option: the name of the option that holds ``path``, for messages. how: its prompt type. skip_unusable: leave out
    pairs that are too long or whose answers are the same, and say how many. with_margin: every record must have one.

    Raises:
        UserError: the file is missing or empty; a record is no preference pair, or one of no use. File and line are
            named.
    """
    pairs: list[Pair] = []
    skipped = Skipped(option, skip_unusable)
    for where, record in read_records(path, option):
        try:
            line, answers = _read(record)
            margin = _margin(record) if with_margin else 0.0
        except LineError as error:
            raise UserError(f"{where}: {error}") from None
        _, prompt = prompt_of(line, where, tokenizer, how)
        for good, bad in answers:
            try:
                if good == bad:
                    raise UnusableLineError(
                        f"{where}: chosen and rejected answer are the same. Remove the line or set data.unusable=skip."
                    )
                chosen, rejected = (answered(prompt, text, where, tokenizer, max_tokens) for text in (good, bad))
            except UnusableLineError as error:
                skipped.add(error)
                continue
            pairs.append(Pair(chosen, rejected, margin))
    skipped.say(len(pairs))
    return pairs


def pack_pairs(pairs: Sequence[Pair]) -> PackedBatch:
    """Sequences 2i and 2i + 1 are the answers of pair i, which no cut separates; ``margin [B]`` is their pair's."""
    sequences = [sequence for pair in pairs for sequence in (pair.chosen, pair.rejected)]
    margins = torch.tensor([pair.margin for pair in pairs])
    both = {"unit": torch.arange(len(pairs)), "margin": margins}
    return PackedBatch.pack(sequences, {name: x.repeat_interleave(2) for name, x in both.items()})


def _read(record: Any) -> tuple[Line, list[tuple[str, str]]]:
    """What is asked, and its pairs of answers."""
    if not isinstance(record, dict):
        raise LineError("expected an object with chosen and rejected.")
    if "pos_answers" in record and "neg_answers" in record:
        return _asked(record), _zipped(record["pos_answers"], record["neg_answers"])
    if "chosen" not in record or "rejected" not in record:
        raise LineError(f"expected the fields chosen and rejected; the line has: {', '.join(record) or 'nothing'}.")
    chosen, rejected = record["chosen"], record["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        if "prompt" in record or "messages" in record:
            return _asked(record), [(chosen, rejected)]
        (text, good), (other_text, bad) = _last_answer(chosen), _last_answer(rejected)
        line, same = Line(text, (), templated=True), text == other_text
    else:
        (before, good), (other, bad) = _last_message(chosen, "chosen"), _last_message(rejected, "rejected")
        line, same = _chat(before) if before else _asked(record), before == other
    if not same:
        raise LineError("chosen and rejected answer different prompts: they differ before their last answer.")
    return line, [(good, bad)]


def _margin(record: dict[str, Any]) -> float:
    margin = record.get("margin")
    if isinstance(margin, bool) or not isinstance(margin, (int, float)):
        raise LineError(f"field 'margin' must be a number, as use_margin=true asks for it; found {margin!r}.")
    return float(margin)


def _asked(record: dict[str, Any]) -> Line:
    prompt = record.get("messages", record.get("prompt"))
    if isinstance(prompt, str):
        return Line(prompt, ())
    if prompt is None:
        raise LineError("field 'prompt' (text or messages) is missing, and chosen and rejected hold only the answers.")
    return _chat([_message(m, "prompt") for m in _list(prompt, "prompt")])


def _chat(messages: list[dict[str, str]]) -> Line:
    return Line(messages[-1]["content"], (), messages=messages)


def _last_message(messages: Any, name: str) -> tuple[list[dict[str, str]], str]:
    """The messages before the answer, and the answer."""
    *before, last = (_message(m, name) for m in _list(messages, name))
    if last["role"] != "assistant":
        raise LineError(f"field '{name}' must end with an assistant's message, not with one of {last['role']}.")
    return before, last["content"]


def _last_answer(text: str) -> tuple[str, str]:
    asked, found, answer = text.rpartition(_DIALOGUE)
    if not found:
        raise LineError("field 'prompt' is missing, and chosen and rejected are no dialogues with 'Assistant:' either.")
    return asked + found, answer


def _list(messages: Any, name: str) -> list:
    if not isinstance(messages, list) or not messages:
        raise LineError(f"field '{name}' must be text or a list of messages with role and content.")
    return messages


def _message(message: Any, name: str) -> dict[str, str]:
    """Only what chat templates need: data sets put notes of their own beside it."""
    content = message.get("content") if isinstance(message, dict) else None
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(content, str) or not isinstance(role, str):
        raise LineError(f"field '{name}' must be text or a list of messages with role and content.")
    return {"role": role, "content": content}


def _zipped(good: Any, bad: Any) -> list[tuple[str, str]]:
    if not isinstance(good, list) or not isinstance(bad, list) or len(good) != len(bad) or not good:
        raise LineError("fields 'pos_answers' and 'neg_answers' must be lists of as many texts.")
    if not all(isinstance(text, str) for text in (*good, *bad)):
        raise LineError("fields 'pos_answers' and 'neg_answers' must be lists of texts.")
    return list(zip(good, bad, strict=True))
