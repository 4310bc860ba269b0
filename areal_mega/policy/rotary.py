"""Rotary positions of packed sequences, with the frequencies that transformers computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from areal_mega.policy.packing import PackedSequences

ROPE_TYPES = ("default", "linear", "llama3", "yarn")


class PackedRotary(torch.nn.Module):
    """Stands in for Megatron's ``rotary_pos_emb``: angles of the rows at hand, rather than of the first places.

    Megatron asks for a length and then for the angles of so many places; the length is here the rows' positions.
    """

    def __init__(self, hf: PretrainedConfig, *, latent: bool = False, with_scale: bool = False) -> None:
        """latent: for latent attention, whose heads have no batch dimension. with_scale: Megatron wants the factor of
        cos and sin as well."""
        super().__init__()
        frequencies, self.scale = inverse_frequencies(hf)
        self.frequencies: Tensor
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.latent, self.with_scale = latent, with_scale

    def get_rotary_seq_len(self, *args: Any, **kwargs: Any) -> Tensor:
        packed = next(x for x in (*args, *kwargs.values()) if isinstance(x, PackedSequences))
        return packed.positions

    def forward(self, positions: Tensor, **_: Any) -> Any:
        """``[L]`` → ``[L, 1, 1, d]`` (latent: ``[L, 1, d]``), float32."""
        angles = torch.outer(positions.float(), self.frequencies)
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        angles = angles if self.latent else angles[:, None]
        return (angles, self.scale) if self.with_scale else angles


def inverse_frequencies(hf: PretrainedConfig) -> tuple[Tensor, float]:
    """RoPE frequencies ``[d / 2]``, and what cos and sin are multiplied by."""
    rope = rope_of(hf)
    if rope["rope_type"] != "default":
        return ROPE_INIT_FUNCTIONS[rope["rope_type"]](hf, torch.device("cpu"))
    size = rotary_size(hf)
    return rope["rope_theta"] ** -(torch.arange(0, size, 2).float() / size), 1.0


def rope_of(hf: PretrainedConfig) -> dict[str, Any]:
    return {"rope_type": "default", **hf.rope_parameters}


def rotary_size(hf: PretrainedConfig) -> int:
    """How many of a head's numbers are rotated."""
    return getattr(hf, "qk_rope_head_dim", None) or head_dim(hf)


def head_dim(hf: PretrainedConfig) -> int:
    return getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
