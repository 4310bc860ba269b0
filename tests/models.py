"""Tiny Hugging Face models of every supported family, with nothing left at its default value."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config, Qwen3Config

CONFIGS = {"qwen3": Qwen3Config, "qwen2": Qwen2Config, "llama": LlamaConfig}
VOCAB = 131  # odd, so that every TP size pads it


def tiny_model(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random float32 model in eval mode; norm weights and biases are random too.

    Four layers, four heads in two groups; Llama with untied embeddings, the others tied.
    """
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": family != "llama",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.05,
        "dtype": "float32",
    }
    if family == "qwen2":
        sizes.pop("head_dim")
    config = CONFIGS[family](**{**sizes, **overrides})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def save_tiny_model(folder: str | Path, family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Make a tiny model and write it to ``folder`` as safetensors."""
    model = tiny_model(family, seed, **overrides)
    model.save_pretrained(folder)
    return model


def as_in_files(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of a model's parameters by the names that checkpoints have, where every expert has its own."""
    return dict(_separated(model.config.model_type, tensors))


def _separated(family: str, tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    gate, up, down = ("w1", "w3", "w2") if family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    for name, tensor in tensors.items():
        if family == "mixtral":
            name = name.replace(".mlp.", ".block_sparse_moe.")
        if name.endswith(".experts.gate_up_proj"):
            for expert, both in enumerate(tensor):
                prefix = f"{name.removesuffix('gate_up_proj')}{expert}."
                yield from zip((f"{prefix}{gate}.weight", f"{prefix}{up}.weight"), both.chunk(2), strict=True)
        elif name.endswith(".experts.down_proj"):
            for expert, matrix in enumerate(tensor):
                yield f"{name.removesuffix('down_proj')}{expert}.{down}.weight", matrix
        else:
            yield name, tensor
