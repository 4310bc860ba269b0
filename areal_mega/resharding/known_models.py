"""Sizes of well-known models, so that their layouts can be planned on paper, without a download.

The numbers are those of the config.json in each model's repository on the Hugging Face hub.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from areal_mega.config.errors import UserError

_FIELDS = (
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)
_TIED = {"tie_word_embeddings": True}
_QWEN3_EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": []}
_DEEPSEEK_V3 = {
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}

# name: repository, the fields above, further fields
_MODELS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "qwen2.5-1.5b": ("Qwen/Qwen2.5-1.5B", ("qwen2", 28, 1536, 8960, 12, 2, 128, 151936), _TIED),
    "deepseek-r1-distill-qwen-1.5b": (
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        ("qwen2", 28, 1536, 8960, 12, 2, 128, 151936),
        {},
    ),
    "qwen2.5-7b": ("Qwen/Qwen2.5-7B", ("qwen2", 28, 3584, 18944, 28, 4, 128, 152064), {}),
    "qwen2.5-14b": ("Qwen/Qwen2.5-14B", ("qwen2", 48, 5120, 13824, 40, 8, 128, 152064), {}),
    "qwen2.5-32b": ("Qwen/Qwen2.5-32B", ("qwen2", 64, 5120, 27648, 40, 8, 128, 152064), {}),
    "qwen2.5-72b": ("Qwen/Qwen2.5-72B", ("qwen2", 80, 8192, 29568, 64, 8, 128, 152064), {}),
    "qwen3-14b": ("Qwen/Qwen3-14B", ("qwen3", 40, 5120, 17408, 40, 8, 128, 151936), {}),
    "qwen3-30b-a3b": (
        "Qwen/Qwen3-30B-A3B",
        ("qwen3_moe", 48, 2048, 6144, 32, 4, 128, 151936),
        {"moe_intermediate_size": 768, **_QWEN3_EXPERTS},
    ),
    "qwen3-235b-a22b": (
        "Qwen/Qwen3-235B-A22B",
        ("qwen3_moe", 94, 4096, 12288, 64, 4, 128, 151936),
        {"moe_intermediate_size": 1536, **_QWEN3_EXPERTS},
    ),
    "llama-3.1-8b": ("meta-llama/Llama-3.1-8B", ("llama", 32, 4096, 14336, 32, 8, 128, 128256), {}),
    "llama-3.1-70b": ("meta-llama/Llama-3.1-70B", ("llama", 80, 8192, 28672, 64, 8, 128, 128256), {}),
    "mixtral-8x7b": (
        "mistralai/Mixtral-8x7B-v0.1",
        ("mixtral", 32, 4096, 14336, 32, 8, 128, 32000),
        {"num_local_experts": 8},
    ),
    "deepseek-v3": ("deepseek-ai/DeepSeek-V3", ("deepseek_v3", 61, 7168, 18432, 128, 128, None, 129280), _DEEPSEEK_V3),
}

# Models of the same sizes by other names. R1's 1.5B has no tied embeddings, unlike Qwen's.
_SAME = {
    "qwen2-7b-instruct": "qwen2.5-7b",
    "qwen2.5-7b-instruct": "qwen2.5-7b",
    "qwen2.5-32b-instruct": "qwen2.5-32b",
    "deepseek-r1-distill-qwen-7b": "qwen2.5-7b",
    "deepseek-r1-distill-qwen-14b": "qwen2.5-14b",
    "deepseek-r1-distill-qwen-32b": "qwen2.5-32b",
}
_MODELS |= {name: _MODELS[other] for name, other in _SAME.items()}

KNOWN_MODELS = tuple(_MODELS)


def known_name(path: str) -> str | None:
    """The known model that the last part of a path names, in any case; None: none."""
    name = path.rstrip("/").rpartition("/")[2].lower()
    return name if name in _MODELS else None


def known_model(name: str) -> SimpleNamespace:
    """An object with the fields of the model's Hugging Face config that the layouts need.

    Raises:
        UserError: the name is not known.
    """
    if name not in _MODELS:
        raise UserError(f"{name} is neither a folder nor a known model; known are {', '.join(KNOWN_MODELS)}")
    _, values, more = _MODELS[name]
    return SimpleNamespace(**{"tie_word_embeddings": False, **dict(zip(_FIELDS, values, strict=True)), **more})
