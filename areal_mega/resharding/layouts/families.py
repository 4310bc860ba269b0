"""The tables. To add a family, see docs/adding-a-model.md."""

from __future__ import annotations

from typing import Any

from areal_mega.config.errors import UserError
from areal_mega.resharding.layouts.table import Family, Row, Split

WHOLE, OUTPUT, INPUT, HEADS, LATENT = Split.WHOLE, Split.OUTPUT, Split.INPUT, Split.HEADS, Split.LATENT

_QKV, _QKV_SGLANG = "self_attention.linear_qkv", "self_attn.qkv_proj"

# Grouped-query attention: Llama and most of what came after it.
GROUPED_QUERY = (
    Row(
        "input_layernorm.weight",
        "hidden",
        WHOLE,
        "input_layernorm.weight",
        "input_layernorm.weight",
        te=f"{_QKV}.layer_norm_weight",
    ),
    Row("self_attn.q_proj.weight", "queries hidden", HEADS, f"{_QKV}.weight", f"{_QKV_SGLANG}.weight"),
    Row("self_attn.k_proj.weight", "keys hidden", HEADS, f"{_QKV}.weight", f"{_QKV_SGLANG}.weight"),
    Row("self_attn.v_proj.weight", "keys hidden", HEADS, f"{_QKV}.weight", f"{_QKV_SGLANG}.weight"),
    Row(
        "self_attn.o_proj.weight",
        "hidden queries",
        INPUT,
        "self_attention.linear_proj.weight",
        "self_attn.o_proj.weight",
    ),
)
QKV_BIAS = (
    Row("self_attn.q_proj.bias", "queries", HEADS, f"{_QKV}.bias", f"{_QKV_SGLANG}.bias"),
    Row("self_attn.k_proj.bias", "keys", HEADS, f"{_QKV}.bias", f"{_QKV_SGLANG}.bias"),
    Row("self_attn.v_proj.bias", "keys", HEADS, f"{_QKV}.bias", f"{_QKV_SGLANG}.bias"),
)
QK_NORM = (
    Row("self_attn.q_norm.weight", "head", WHOLE, "self_attention.q_layernorm.weight", "self_attn.q_norm.weight"),
    Row("self_attn.k_norm.weight", "head", WHOLE, "self_attention.k_layernorm.weight", "self_attn.k_norm.weight"),
)

# Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).
_FUSED_DOWN = "self_attn.fused_qkv_a_proj_with_mqa.weight"
_NORM = Row("input_layernorm.weight", "hidden", WHOLE, "input_layernorm.weight", "input_layernorm.weight")
_LATENT_KEYS = (
    Row(
        "self_attn.kv_a_layernorm.weight",
        "kv_latent",
        WHOLE,
        "self_attention.kv_layernorm.weight",
        "self_attn.kv_a_layernorm.weight",
        te="self_attention.linear_kv_up_proj.layer_norm_weight",
    ),
    # SGLang also derives w_kc and w_vc from it, which its post_load_weights makes anew.
    Row(
        "self_attn.kv_b_proj.weight",
        "latent_keys_values kv_latent",
        OUTPUT,
        "self_attention.linear_kv_up_proj.weight",
        "self_attn.kv_b_proj.weight",
    ),
    Row(
        "self_attn.o_proj.weight",
        "hidden latent_values",
        INPUT,
        "self_attention.linear_proj.weight",
        "self_attn.o_proj.weight",
    ),
)
LATENT_ATTENTION = (
    _NORM,
    Row(
        "self_attn.q_a_proj.weight", "q_latent hidden", LATENT, "self_attention.linear_q_down_proj.weight", _FUSED_DOWN
    ),
    Row(
        "self_attn.q_a_layernorm.weight",
        "q_latent",
        WHOLE,
        "self_attention.q_layernorm.weight",
        "self_attn.q_a_layernorm.weight",
        te="self_attention.linear_q_up_proj.layer_norm_weight",
    ),
    Row(
        "self_attn.q_b_proj.weight",
        "latent_queries q_latent",
        OUTPUT,
        "self_attention.linear_q_up_proj.weight",
        "self_attn.q_b_proj.weight",
    ),
    Row(
        "self_attn.kv_a_proj_with_mqa.weight",
        "kv_latent_and_rope hidden",
        LATENT,
        "self_attention.linear_kv_down_proj.weight",
        _FUSED_DOWN,
    ),
    *_LATENT_KEYS,
)
LATENT_ATTENTION_FULL_QUERY = (
    _NORM,
    Row(
        "self_attn.q_proj.weight",
        "latent_queries hidden",
        OUTPUT,
        "self_attention.linear_q_proj.weight",
        "self_attn.q_proj.weight",
    ),
    Row(
        "self_attn.kv_a_proj_with_mqa.weight",
        "kv_latent_and_rope hidden",
        LATENT,
        "self_attention.linear_kv_down_proj.weight",
        "self_attn.kv_a_proj_with_mqa.weight",
    ),
    *_LATENT_KEYS,
)

_POST_NORM = "post_attention_layernorm.weight"
GATED_MLP = (
    Row(_POST_NORM, "hidden", WHOLE, "pre_mlp_layernorm.weight", _POST_NORM, te="mlp.linear_fc1.layer_norm_weight"),
    Row("mlp.gate_proj.weight", "ffn hidden", OUTPUT, "mlp.linear_fc1.weight", "mlp.gate_up_proj.weight"),
    Row("mlp.up_proj.weight", "ffn hidden", OUTPUT, "mlp.linear_fc1.weight", "mlp.gate_up_proj.weight"),
    Row("mlp.down_proj.weight", "hidden ffn", INPUT, "mlp.linear_fc2.weight", "mlp.down_proj.weight"),
)


def mixture(mlp: str, gate: str, up: str, down: str) -> tuple[Row, ...]:
    """Router and routed experts. mlp: what the checkpoint calls the block; gate, up, down: its experts' tensors."""
    fc1, fc2 = (f"mlp.experts.local_experts.{{E}}.linear_fc{n}.weight" for n in (1, 2))
    grouped1, grouped2 = (f"mlp.experts.linear_fc{n}.weight{{E}}" for n in (1, 2))
    experts, w13, w2 = f"{mlp}.experts.{{E}}", f"{mlp}.experts.w13_weight", f"{mlp}.experts.w2_weight"
    return (
        Row(_POST_NORM, "hidden", WHOLE, "pre_mlp_layernorm.weight", _POST_NORM),
        Row(f"{mlp}.gate.weight", "experts hidden", WHOLE, "mlp.router.weight", f"{mlp}.gate.weight"),
        Row(f"{experts}.{gate}.weight", "expert_ffn hidden", OUTPUT, fc1, w13, grouped=grouped1),
        Row(f"{experts}.{up}.weight", "expert_ffn hidden", OUTPUT, fc1, w13, grouped=grouped1),
        Row(f"{experts}.{down}.weight", "hidden expert_ffn", INPUT, fc2, w2, grouped=grouped2),
    )


MIXTURE = mixture("mlp", "gate_proj", "up_proj", "down_proj")
MIXTRAL_MIXTURE = mixture("block_sparse_moe", "w1", "w3", "w2")
_SHARED = "mlp.shared_experts"
SHARED_EXPERTS = (
    Row(
        f"{_SHARED}.gate_proj.weight",
        "shared_ffn hidden",
        OUTPUT,
        f"{_SHARED}.linear_fc1.weight",
        f"{_SHARED}.gate_up_proj.weight",
    ),
    Row(
        f"{_SHARED}.up_proj.weight",
        "shared_ffn hidden",
        OUTPUT,
        f"{_SHARED}.linear_fc1.weight",
        f"{_SHARED}.gate_up_proj.weight",
    ),
    Row(
        f"{_SHARED}.down_proj.weight",
        "hidden shared_ffn",
        INPUT,
        f"{_SHARED}.linear_fc2.weight",
        f"{_SHARED}.down_proj.weight",
    ),
)
# Balances experts without an auxiliary loss (arXiv:2408.15664); moved by counts, not by gradients: Megatron's is a
# buffer, not a parameter.
EXPERT_BIAS = (
    Row(
        "mlp.gate.e_score_correction_bias",
        "experts",
        WHOLE,
        "mlp.router.expert_bias",
        "mlp.gate.e_score_correction_bias",
    ),
)


def llama(hf: Any, layer: int) -> tuple[Row, ...]:
    return (*GROUPED_QUERY, *GATED_MLP)


def qwen2(hf: Any, layer: int) -> tuple[Row, ...]:
    return (*GROUPED_QUERY, *QKV_BIAS, *GATED_MLP)


def qwen3(hf: Any, layer: int) -> tuple[Row, ...]:
    return (*GROUPED_QUERY, *QK_NORM, *GATED_MLP)


def qwen3_moe(hf: Any, layer: int) -> tuple[Row, ...]:
    every = getattr(hf, "decoder_sparse_step", 1)
    sparse = layer not in (getattr(hf, "mlp_only_layers", None) or ()) and (layer + 1) % every == 0
    return (*GROUPED_QUERY, *QK_NORM, *(MIXTURE if sparse else GATED_MLP))


def mixtral(hf: Any, layer: int) -> tuple[Row, ...]:
    return (*GROUPED_QUERY, *MIXTRAL_MIXTURE)


def deepseek(hf: Any, layer: int) -> tuple[Row, ...]:
    attention = LATENT_ATTENTION if getattr(hf, "q_lora_rank", None) else LATENT_ATTENTION_FULL_QUERY
    if layer < hf.first_k_dense_replace or layer % getattr(hf, "moe_layer_freq", 1):
        return (*attention, *GATED_MLP)
    shared = SHARED_EXPERTS if hf.n_shared_experts else ()
    bias = EXPERT_BIAS if hf.model_type == "deepseek_v3" else ()
    return (*attention, *MIXTURE, *bias, *shared)


def deepseek_sizes(hf: Any) -> dict[str, int]:
    nope, rope, value = hf.qk_nope_head_dim, hf.qk_rope_head_dim, hf.v_head_dim
    return {
        "q_latent": getattr(hf, "q_lora_rank", None) or 0,
        "kv_latent": hf.kv_lora_rank,
        "kv_latent_and_rope": hf.kv_lora_rank + rope,
        "latent_queries": hf.num_attention_heads * (nope + rope),
        "latent_keys_values": hf.num_attention_heads * (nope + value),
        "latent_values": hf.num_attention_heads * value,
        "experts": hf.n_routed_experts,
        "expert_ffn": hf.moe_intermediate_size,
        "shared_ffn": hf.moe_intermediate_size * (hf.n_shared_experts or 0),
    }


DEEPSEEK = Family(deepseek, deepseek_sizes, "n_routed_experts")

# By the config's model_type.
FAMILIES: dict[str, Family] = {
    "llama": Family(llama),
    "qwen2": Family(qwen2),
    "qwen3": Family(qwen3),
    "qwen3_moe": Family(
        qwen3_moe,
        lambda hf: {"experts": hf.num_experts, "expert_ffn": hf.moe_intermediate_size},
        "num_experts",
    ),
    "mixtral": Family(
        mixtral,
        lambda hf: {"experts": hf.num_local_experts, "expert_ffn": hf.intermediate_size},
        "num_local_experts",
    ),
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
}


def family_of(hf: Any) -> Family:
    """The table for a config.

    Raises:
        UserError: there is none for its model_type.
    """
    name = getattr(hf, "model_type", None)
    if name not in FAMILIES:
        raise UserError(
            f"model_type {name} is not supported; supported are {', '.join(FAMILIES)}. "
            "docs/adding-a-model.md shows how to add one."
        )
    return FAMILIES[name]
