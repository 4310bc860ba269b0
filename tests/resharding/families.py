"""Tiny models of every family whose tables exist, and weights whose every element says which one it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from models import VOCAB
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "beta_fast": 32,
    "beta_slow": 1,
}
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,  # odd, so that every TP size pads it
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "dtype": "float32",
}
_SPARSE = {**_SIZES, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LATENT: dict[str, Any] = {
    **_SPARSE,
    "num_key_value_heads": 8,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "rope_parameters": _YARN,
}
del _LATENT["head_dim"]
# Fields of the published config.json files that SGLang asks for, and transformers does not know.
_V2 = {"moe_layer_freq": 1, "scoring_func": "softmax", "topk_method": "group_limited_greedy"}
_V3 = {"moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc"}

CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_SIZES),
    "qwen2": Qwen2Config(**{k: v for k, v in _SIZES.items() if k != "head_dim"}, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**_SIZES, tie_word_embeddings=True),
    "qwen3_moe": Qwen3MoeConfig(**_SPARSE, num_experts=4),
    "mixtral": MixtralConfig(
        **{**_SIZES, "head_dim": 4}, num_local_experts=4, num_experts_per_tok=2, sliding_window=None
    ),
    "deepseek_v2": DeepseekV2Config(**_LATENT, **_V2, n_shared_experts=2, q_lora_rank=None),
    "deepseek_v3": DeepseekV3Config(**_LATENT, **_V3, n_shared_experts=1, q_lora_rank=24),
}


def config_of(family: str, **overrides: Any) -> PretrainedConfig:
    """The tiny config with some fields changed."""
    fields = {**CONFIGS[family].to_dict(), **overrides}
    fields.pop("layer_types", None)  # follows from the number of layers
    return type(CONFIGS[family]).from_dict(fields)


def save_indexed(folder: str | Path, family: str, **overrides: Any) -> dict[str, torch.Tensor]:
    """Write a model whose elements are all different whole numbers, from 1 on; returns the tensors of the file."""
    AutoModelForCausalLM.from_config(config_of(family, **overrides)).float().save_pretrained(folder)
    file = Path(folder) / "model.safetensors"
    tensors = indexed({name: tuple(tensor.shape) for name, tensor in load_file(file).items()})
    save_file(tensors, file, metadata={"format": "pt"})
    return tensors


def indexed(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """float32 tensors whose elements count on from tensor to tensor; exact below 2**24."""
    tensors, first = {}, 1
    for name, shape in sorted(shapes.items()):
        size = torch.Size(shape).numel()
        tensors[name] = torch.arange(first, first + size, dtype=torch.float32).view(shape)
        first += size
    assert first < 1 << 24
    return tensors
