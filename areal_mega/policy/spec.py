"""From a Hugging Face config.json to Megatron's TransformerConfig and layer specification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from transformers import AutoConfig, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from areal_mega.config.errors import UserError
from areal_mega.policy.attention import PackedAttention
from areal_mega.runtime.distributed import Topology

FAMILIES = ("qwen3", "qwen2", "llama")
ROPE_TYPES = ("default", "linear", "llama3")


def read_config(folder: str | Path) -> PretrainedConfig:
    """The Hugging Face config of a model folder, checked to be one this package can train.

    Raises:
        UserError: no readable config.json, or an architecture or feature that is not supported.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; model.path and critic.path must name Hugging Face model folders")
    try:
        family = json.loads(path.read_text()).get("model_type")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a JSON object: {error}") from error
    if family not in FAMILIES:
        raise UserError(f"{path}: model_type {family} is not supported; supported are {', '.join(FAMILIES)}")
    hf = AutoConfig.from_pretrained(folder)
    problems = [message for wrong, message in _unsupported(hf) if wrong]
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}")
    return hf


def transformer_config(hf: PretrainedConfig, topology: Topology, dtype: torch.dtype) -> TransformerConfig:
    """Megatron's description of the model in this layout.

    Raises:
        UserError: the layout does not divide the model.
    """
    _check_layout(hf, topology)
    return TransformerConfig(
        num_layers=hf.num_hidden_layers,
        hidden_size=hf.hidden_size,
        num_attention_heads=hf.num_attention_heads,
        num_query_groups=hf.num_key_value_heads,
        kv_channels=head_dim(hf),
        ffn_hidden_size=hf.intermediate_size,
        gated_linear_unit=True,
        activation_func=F.silu,
        normalization="RMSNorm",
        layernorm_epsilon=hf.rms_norm_eps,
        qk_layernorm=hf.model_type == "qwen3",
        add_bias_linear=False,
        add_qkv_bias=hf.model_type == "qwen2",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=topology.tp,
        pipeline_model_parallel_size=topology.pp,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        variable_seq_lengths=topology.pp > 1,
        moe_token_dispatcher_type="alltoall",  # a dense model too must name one that allows variable lengths
        batch_p2p_comm=False,
        deallocate_pipeline_outputs=topology.pp > 1,
        # The losses are normalised by global counts already: Megatron must divide neither by micro-batches
        # nor by data-parallel ranks.
        calculate_per_token_loss=True,
        # Weights are loaded. Initialisation still has to run, because it marks the parameters that are
        # split over TP ranks, and the global gradient norm relies on these marks.
        perform_initialization=True,
        init_method=_leave,
        output_layer_init_method=_leave,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
    )


def layer_spec(config: TransformerConfig) -> TransformerBlockSubmodules:
    """This pipeline stage's layers: Megatron's own, with packed attention and torch's RMSNorm."""
    layer = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization="RMSNorm")
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = PackedAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return TransformerBlockSubmodules([layer] * get_num_layers_to_build(config), layer_norm=RMSNorm)


def inverse_frequencies(hf: PretrainedConfig) -> torch.Tensor | None:
    """Scaled RoPE frequencies ``[head_dim / 2]`` as transformers computes them; None: plain RoPE."""
    rope = _rope(hf)
    if rope["rope_type"] == "default":
        return None
    return ROPE_INIT_FUNCTIONS[rope["rope_type"]](hf, torch.device("cpu"))[0]


def rotary_base(hf: PretrainedConfig) -> float:
    return _rope(hf)["rope_theta"]


def head_dim(hf: PretrainedConfig) -> int:
    return getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm with the constructor that Megatron's specifications call."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)


def _leave(weight: torch.Tensor) -> None:
    """An initialisation that leaves the weight as it is."""


def _rope(hf: PretrainedConfig) -> dict[str, Any]:
    return {"rope_type": "default", **hf.rope_parameters}


def _unsupported(hf: PretrainedConfig) -> list[tuple[bool, str]]:
    rope = _rope(hf)
    sliding = [kind for kind in getattr(hf, "layer_types", None) or [] if kind != "full_attention"]
    return [
        (hf.hidden_act != "silu", f"hidden_act {hf.hidden_act} is not supported (silu is)"),
        (
            hf.model_type != "qwen2" and bool(getattr(hf, "attention_bias", False)),
            "attention_bias=true is not supported for this architecture",
        ),
        (bool(getattr(hf, "mlp_bias", False)), "mlp_bias=true is not supported"),
        (bool(sliding), "sliding-window attention is not supported; set use_sliding_window=false"),
        (
            rope["rope_type"] not in ROPE_TYPES,
            f"RoPE scaling {rope['rope_type']} is not supported (supported are {', '.join(ROPE_TYPES)})",
        ),
        (rope.get("partial_rotary_factor", 1.0) != 1.0, "partial_rotary_factor is not supported"),
        (
            getattr(hf, "quantization_config", None) is not None,
            "quantized weights cannot be trained; use the original weights",
        ),
    ]


def _check_layout(hf: PretrainedConfig, topology: Topology) -> None:
    sizes = {
        "num_attention_heads": hf.num_attention_heads,
        "num_key_value_heads": hf.num_key_value_heads,
        "intermediate_size": hf.intermediate_size,
    }
    for name, size in sizes.items():
        if size % topology.tp:
            raise UserError(
                f"policy.parallel.tensor={topology.tp} does not divide the model's {name}={size}; choose a divisor"
            )
    if hf.num_hidden_layers % topology.pp:
        raise UserError(
            f"policy.parallel.pipeline={topology.pp} does not divide the model's "
            f"num_hidden_layers={hf.num_hidden_layers}; choose a divisor"
        )
