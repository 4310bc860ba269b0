"""Tiny Hugging Face models of every supported family, with nothing left at its default value."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

CONFIGS: dict[str, type[PretrainedConfig]] = {
    "qwen3": Qwen3Config,
    "qwen2": Qwen2Config,
    "llama": LlamaConfig,
    "qwen3_moe": Qwen3MoeConfig,
    "mixtral": MixtralConfig,
    "deepseek_v2": DeepseekV2Config,
    "deepseek_v3": DeepseekV3Config,
}
VOCAB = 131  # odd, so that every TP size pads it
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
OVERRIDES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    # The first DeepSeek-V2 (Lite) has no query compression; its scores are not normalised.
    "deepseek_v2": _LATENT | {"q_lora_rank": None, "topk_method": "greedy", "routed_scaling_factor": 1.5},
    "deepseek_v3": _LATENT | {"n_group": 2, "topk_group": 1, "norm_topk_prob": True, "num_mtp_layers": 0},
}


def tiny_model(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random float32 model in eval mode; norm weights and biases are random too.

    Four layers, four heads in two groups; four experts. Qwen2 and the dense Qwen3 with tied embeddings.
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
        "tie_word_embeddings": family in ("qwen3", "qwen2"),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.05,
        "dtype": "float32",
        **OVERRIDES.get(family, {}),
    }
    if family == "qwen2" or family.startswith("deepseek"):
        sizes.pop("head_dim")
    config = CONFIGS[family](**{**sizes, **overrides})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif name.endswith(".gate.weight"):
                parameter.copy_(torch.randn_like(parameter) * 0.2)  # clear choices
            elif "experts." in name:
                parameter.copy_(torch.randn_like(parameter) * 0.06)  # experts that matter
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn_like(buffer) * 0.2)
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
