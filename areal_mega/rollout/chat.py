"""Conversations as token ids: what the model's own chat template puts around messages, and nothing twice.

What the model generated stays as its ids. A template only ever makes the prompt, and the piece that comes between a
generated turn and the next: the end of the model's turn where the model did not generate that itself, the new
messages, and the head of the next turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from areal_mega.config.errors import UserError

Message = dict[str, Any]

# Stands for what the model said. Plain words: no template trims, parses or splits it.
_SAID = "whateverthemodelsaid"


class ChatFormat:
    """One model's way to write conversations.

    Raises:
        UserError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.chat_template is None:
            raise UserError("This rollout.workflow needs a chat template, and the model's tokenizer has none.")
        self._tokenizer = tokenizer

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """The conversation, ready for the model's turn."""
        return self._tokens(self._render(messages, tools, ask=True))

    def between(self, generated: Sequence[int], messages: Sequence[Message]) -> list[int]:
        """What comes after a generated turn, up to where the model's next turn begins.

        messages: the answers to the turn: of the user, or the results of tools. Where the generated ids end with a
        token by which the template closes a turn, the piece begins behind that token; else it closes the turn.

        Raises:
            UserError: the template cannot take such messages.
        """
        asked: list[Message] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _SAID}]
        closing = _behind(self._render(asked, (), ask=False))
        whole = self._render([*asked, *messages], (), ask=True)
        piece = self._tail(whole, len(whole) - len(_behind(whole)))
        closing = _common(closing, _behind(whole))
        own_end = generated[-1] if generated else None
        for place, token in enumerate(piece[: len(self._tokens(closing))]):
            if token == own_end:
                return piece[place + 1 :]
        return piece

    def _render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], ask: bool) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                list(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=ask
            )
        except Exception as error:
            raise UserError(f"The chat template cannot take these messages: {error}.") from None

    def _tokens(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _tail(self, text: str, start: int) -> list[int]:
        """The ids of ``text[start:]``, as they are in the whole text.

        By itself the tail could begin otherwise: some tokenizers put a space before every text.
        """
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        places = [i for i, (begin, end) in enumerate(encoded["offset_mapping"]) if begin >= start and end > begin]
        return encoded["input_ids"][places[0] :] if places else []


def _behind(text: str) -> str:
    """What a template wrote behind the model's turn."""
    _, said, behind = text.partition(_SAID)
    if not said:
        raise UserError("The chat template leaves out what the model said in an earlier turn.")
    return behind


def _common(a: str, b: str) -> str:
    """The beginning two texts share."""
    length = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:length]
