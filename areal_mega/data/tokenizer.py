"""The model's tokenizer, with clear errors where the model folder is no model."""

from __future__ import annotations

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
