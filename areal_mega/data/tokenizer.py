"""The model's tokenizer, with clear errors where the model folder is no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from areal_mega.config.errors import UserError


def load_tokenizer(path: str, option: str = "model.path") -> Any:
    """The tokenizer of a Hugging Face folder. option: the name of the option that holds ``path``, for messages.

    Raises:
        UserError: the folder or its tokenizer is missing or broken, or has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    if not Path(path).is_dir():
        raise UserError(f"{option}={path}: no such folder.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{option}={path}: its tokenizer cannot be loaded: {reason}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"{option}={path}: its tokenizer has no end-of-sequence token (eos_token).")
    return tokenizer


def check_same_tokens(path: str, option: str, other: str) -> None:
    """Log-probs of one model's tokens by another mean something only where ids mean the same.

    path: of the model that is trained. other: of the model that option names.

    Raises:
        UserError: their tokenizers differ, or one cannot be loaded.
    """
    mine, theirs = load_tokenizer(path).get_vocab(), load_tokenizer(other, option).get_vocab()
    if mine != theirs:
        differing = sum(mine.get(token) != theirs.get(token) for token in mine.keys() | theirs.keys())
        raise UserError(
            f"{option}={other}: its tokenizer is not that of model.path={path}: {differing} of their tokens have "
            "another id or are only in one of them. Use a model with the same tokens."
        )


def stop_tokens(path: str, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends a response: the tokenizer's, and those the model's folder names, at which SGLang stops."""
    tokens = [tokenizer.eos_token_id]
    for name in ("config.json", "generation_config.json"):
        file = Path(path) / name
        named = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
        tokens += named if isinstance(named, list) else [named]
    return tuple(sorted({token for token in tokens if token is not None}))
