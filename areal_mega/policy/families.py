"""What Megatron has to know of each model family: fields of its TransformerConfig from a Hugging Face config.

A family is an entry of `FAMILIES`, and its weights are a table in `areal_mega.resharding`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from transformers import PretrainedConfig

from areal_mega.policy.rotary import ROPE_TYPES, head_dim, rope_of

Fields = dict[str, Any]
Problems = Iterator[tuple[bool, str]]


def _none(hf: PretrainedConfig) -> Problems:
    yield from ()


@dataclass(frozen=True)
class Family:
    """fields: what differs from a plain Llama. problems: what is not supported, as pairs of whether it is so and what
    to say. attention_bias: whether attention_bias=true is a bias of q, k and v."""

    fields: Callable[[PretrainedConfig], Fields]
    problems: Callable[[PretrainedConfig], Problems] = _none
    attention_bias: bool = False


def architecture(hf: PretrainedConfig) -> Fields:
    """The TransformerConfig fields that describe the model itself."""
    common = {
        "num_layers": hf.num_hidden_layers,
        "hidden_size": hf.hidden_size,
        "num_attention_heads": hf.num_attention_heads,
        "num_query_groups": hf.num_key_value_heads,
        "kv_channels": head_dim(hf),
        "ffn_hidden_size": hf.intermediate_size,
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "normalization": "RMSNorm",
        "layernorm_epsilon": hf.rms_norm_eps,
        "add_bias_linear": False,
        "add_qkv_bias": FAMILIES[hf.model_type].attention_bias,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    return common | FAMILIES[hf.model_type].fields(hf)


def is_latent(hf: PretrainedConfig) -> bool:
    """Whether the model has multi-head latent attention (MLA)."""
    return hf.model_type in ("deepseek_v2", "deepseek_v3")


def problems(hf: PretrainedConfig) -> list[str]:
    """What of the model is not supported, in sentences."""
    family = FAMILIES[hf.model_type]
    return [message for wrong, message in (*_common_problems(hf), *family.problems(hf)) if wrong]


def _common_problems(hf: PretrainedConfig) -> Problems:
    rope = rope_of(hf)
    sliding = [kind for kind in getattr(hf, "layer_types", None) or [] if kind != "full_attention"]
    yield hf.hidden_act != "silu", f"hidden_act {hf.hidden_act} is not supported (silu is)"
    yield (
        not FAMILIES[hf.model_type].attention_bias and bool(getattr(hf, "attention_bias", False)),
        "attention_bias=true is not supported for this architecture",
    )
    yield bool(getattr(hf, "mlp_bias", False)), "mlp_bias=true is not supported"
    yield bool(sliding), "sliding-window attention is not supported; set use_sliding_window=false"
    yield (
        rope["rope_type"] not in ROPE_TYPES,
        f"RoPE scaling {rope['rope_type']} is not supported (supported are {', '.join(ROPE_TYPES)})",
    )
    yield rope.get("partial_rotary_factor", 1.0) != 1.0, "partial_rotary_factor is not supported"
    yield (
        not is_latent(hf) and rope.get("rope_type") == "yarn",
        "RoPE scaling yarn is supported for DeepSeek models only",
    )
    yield (
        getattr(hf, "quantization_config", None) is not None,
        "quantized weights cannot be trained; use the original weights",
    )


def _dense(hf: PretrainedConfig) -> Fields:
    return {}


def _qwen3(hf: PretrainedConfig) -> Fields:
    return {"qk_layernorm": True}


def _experts(hf: PretrainedConfig, count: int, width: int) -> Fields:
    """Softmax routing to the k likeliest of ``count`` experts of ``width`` intermediate features."""
    return {
        "num_moe_experts": count,
        "moe_ffn_hidden_size": width,
        "moe_router_topk": hf.num_experts_per_tok,
        # Without: the k weights are a softmax of their own, which is the same as to normalise their sum to 1.
        "moe_router_pre_softmax": not getattr(hf, "norm_topk_prob", True),
    }


def _qwen3_moe(hf: PretrainedConfig) -> Fields:
    return _qwen3(hf) | _experts(hf, hf.num_experts, hf.moe_intermediate_size)


def _qwen3_moe_problems(hf: PretrainedConfig) -> Problems:
    yield (
        hf.decoder_sparse_step != 1 or bool(hf.mlp_only_layers),
        "dense layers between the MoE layers (decoder_sparse_step, mlp_only_layers) are not supported",
    )


def _mixtral(hf: PretrainedConfig) -> Fields:
    return _experts(hf, hf.num_local_experts, hf.intermediate_size)


def _mixtral_problems(hf: PretrainedConfig) -> Problems:
    yield bool(hf.sliding_window), "sliding-window attention is not supported; set sliding_window=null"
    yield hf.router_jitter_noise > 0, "router_jitter_noise is not supported; set it to 0"


def _deepseek(hf: PretrainedConfig) -> Fields:
    """Multi-head latent attention; dense layers first, then routed and shared experts."""
    rope = rope_of(hf)
    scaled = rope["rope_type"] != "default"
    dense = min(hf.first_k_dense_replace, hf.num_hidden_layers)
    return _experts(hf, hf.n_routed_experts, hf.moe_intermediate_size) | {
        "multi_latent_attention": True,
        "qk_layernorm": True,
        "q_lora_rank": hf.q_lora_rank,
        "kv_lora_rank": hf.kv_lora_rank,
        "qk_head_dim": hf.qk_nope_head_dim,
        "qk_pos_emb_head_dim": hf.qk_rope_head_dim,
        "v_head_dim": hf.v_head_dim,
        "num_query_groups": hf.num_attention_heads,
        # Megatron's own rotary module is replaced; with yarn it asks for the factor of cos and sin, too.
        "rope_type": "yarn" if scaled else "rope",
        "rotary_base": rope["rope_theta"],
        "rotary_scaling_factor": rope.get("factor", 1.0),
        "mscale_all_dim": rope.get("mscale_all_dim", 0) if scaled else 0.0,
        "moe_layer_freq": [0] * dense + [1] * (hf.num_hidden_layers - dense),
        "moe_shared_expert_intermediate_size": hf.moe_intermediate_size * hf.n_shared_experts,
        "moe_router_topk_scaling_factor": hf.routed_scaling_factor,
    }


def _deepseek_v3(hf: PretrainedConfig) -> Fields:
    """Sigmoid scores; a bias that counts in the choice of experts only."""
    return _deepseek(hf) | {
        "moe_router_pre_softmax": False,
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_num_groups": hf.n_group,
        "moe_router_group_topk": hf.topk_group,
    }


def _deepseek_v2_problems(hf: PretrainedConfig) -> Problems:
    yield (
        hf.topk_method != "greedy",
        f"topk_method {hf.topk_method} is not supported: Megatron scores a group by its best experts together, not by "
        "the best one (greedy is supported)",
    )
    yield bool(hf.norm_topk_prob), "norm_topk_prob=true is not supported for deepseek_v2, whose model code ignores it"


def _deepseek_v3_problems(hf: PretrainedConfig) -> Problems:
    yield not hf.norm_topk_prob, "norm_topk_prob=false is not supported: Megatron normalises sigmoid scores"
    yield not hf.rope_interleave, "rope_interleave=false is not supported"
    yield (
        hf.num_experts_per_tok // hf.topk_group != 2,
        f"num_experts_per_tok={hf.num_experts_per_tok} with topk_group={hf.topk_group} is not supported: Megatron "
        "scores a group by its num_experts_per_tok // topk_group best experts, the model by its two best",
    )


FAMILIES: dict[str, Family] = {
    "qwen3": Family(_qwen3),
    "qwen2": Family(_dense, attention_bias=True),
    "llama": Family(_dense),
    "qwen3_moe": Family(_qwen3_moe, _qwen3_moe_problems),
    "mixtral": Family(_mixtral, _mixtral_problems),
    "deepseek_v2": Family(_deepseek, _deepseek_v2_problems),
    "deepseek_v3": Family(_deepseek_v3, _deepseek_v3_problems),
}
