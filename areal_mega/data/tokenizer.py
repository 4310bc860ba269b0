"""The model's tokenizer, with clear errors where the model folder is no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from areal_mega.config.errors import UserError


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a Hugging Face folder.

    Raises:
        UserError: the folder or its tokenizer is missing or broken, or has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    if not Path(path).is_dir():
        raise UserError(f"model.path={path}: no such folder.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"model.path={path}: its tokenizer cannot be loaded: {reason}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"model.path={path}: its tokenizer has no end-of-sequence token (eos_token).")
    return tokenizer


def stop_tokens(path: str, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends a response: the tokenizer's, and those the model's folder names, at which SGLang stops."""
    tokens = [tokenizer.eos_token_id]
    for name in ("config.json", "generation_config.json"):
        file = Path(path) / name
        named = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
        tokens += named if isinstance(named, list) else [named]
    return tuple(sorted({token for token in tokens if token is not None}))
