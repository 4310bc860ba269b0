"""A family's table with the numbers of one model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from areal_mega.config.errors import UserError
from areal_mega.resharding.layouts.families import family_of
from areal_mega.resharding.layouts.table import EMBEDDING, FINAL_NORM, OUTPUT, VALUE, Row, Split, hf_name


class Model:
    """What the layouts need to know of a model.

    hf: the Hugging Face config, or any object with its fields. critic: with a value head in the place of the output
    layer. Missing numbers are a UserError.
    """

    def __init__(self, hf: Any, critic: bool = False) -> None:
        self._hf = hf
        self._family = family_of(hf)
        self.critic = critic
        self.layers: int = self._number("num_hidden_layers")
        self.heads: int = self._number("num_attention_heads")
        self.groups: int = getattr(hf, "num_key_value_heads", None) or self.heads
        self.tied = bool(getattr(hf, "tie_word_embeddings", False))
        self.experts: int = self._number(self._family.experts) if self._family.experts else 0
        hidden = self._number("hidden_size")
        self.head_dim: int = getattr(hf, "head_dim", None) or hidden // self.heads
        self.sizes: dict[str, int] = {
            "one": 1,
            "vocab": self._number("vocab_size"),
            "hidden": hidden,
            "head": self.head_dim,
            "queries": self.heads * self.head_dim,
            "keys": self.groups * self.head_dim,
            "ffn": self._number("intermediate_size"),
            **self._family_sizes(),
        }

    def layer(self, number: int) -> tuple[Row, ...]:
        """The rows of a layer, which is counted from 0."""
        return self._family.rows(self._hf, number)

    def shape(self, row: Row) -> tuple[int, ...]:
        """The whole tensor's."""
        return self._shapes[row.shape]

    def uses(self, split: Split) -> bool:
        """Whether some tensor is divided so."""
        return any(row.split is split for row in self.rows)

    @property
    def has_dense_layers(self) -> bool:
        """Whether some layer has an MLP of the config's intermediate_size."""
        return any("ffn" in row.shape.split() for row in self.rows)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """All different rows of the model, with those of its layers once."""
        layers = dict.fromkeys(row for number in range(self.layers) for row in self.layer(number))
        return (EMBEDDING, *layers, FINAL_NORM, *self.head)

    @property
    def head(self) -> tuple[Row, ...]:
        """What stands after the final norm, as its own tensor."""
        if self.critic:
            return (VALUE,)
        return () if self.tied else (OUTPUT,)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """All Hugging Face tensors, as a checkpoint on disk names them: name, shape."""
        yield EMBEDDING.hf, self.shape(EMBEDDING)
        for number in range(self.layers):
            for row in self.layer(number):
                for expert in range(self.experts if row.is_expert else 1):
                    yield hf_name(row, number, expert), self.shape(row)
        for row in (FINAL_NORM, *self.head):
            yield row.hf, self.shape(row)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {row.shape: tuple(self.sizes[size] for size in row.shape.split()) for row in self.rows}

    def _family_sizes(self) -> Mapping[str, int]:
        try:
            return self._family.sizes(self._hf)
        except AttributeError as error:
            raise UserError(f"config.json of a {self._hf.model_type} model: {error}") from error

    def _number(self, name: str) -> int:
        value = getattr(self._hf, name, None)
        if not isinstance(value, int):
            raise UserError(f"config.json of a {self._hf.model_type} model needs the number {name}; it is {value}")
        return value
