"""Megatron's own GPTModel for every rank of a layout, without a second process: on torch's fake process groups."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer import MLATransformerConfig, TransformerConfig
from resharding.families import config_of
from torch.testing._internal.distributed.fake_pg import FakeStore

from areal_mega.policy.latent_attention import PackedLatentAttention


def ranks(family: str, grid: dict[str, int], overrides: dict[str, Any]) -> list[dict[str, list[int]]]:
    """Name → shape of every parameter, and of the router's bias, of each rank."""
    hf = config_of(family, **overrides)
    world = grid["tp"] * grid["pp"] * grid["dp"]
    found = []
    for rank in range(world):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=grid["tp"],
            pipeline_model_parallel_size=grid["pp"],
            virtual_pipeline_model_parallel_size=grid["vpp"] if grid["vpp"] > 1 else None,
            expert_model_parallel_size=grid["ep"],
            expert_tensor_parallel_size=grid["etp"],
            create_gloo_process_groups=False,
        )
        model_parallel_cuda_manual_seed(1)
        names: dict[str, list[int]] = {}
        for chunk in range(grid["vpp"]):
            names |= parameters(hf, grid, chunk if grid["vpp"] > 1 else None)
        found.append(names)
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
    return found


class CoreAttention(torch.nn.Module):
    """It has no weights; Megatron's own, without TransformerEngine, does not take the sizes of latent attention."""

    def __init__(self, **_: Any) -> None:
        super().__init__()


def parameters(hf: Any, grid: dict[str, int], chunk: int | None) -> dict[str, list[int]]:
    config = transformer_config(hf, grid)
    spec = get_gpt_decoder_block_spec(config, use_transformer_engine=False, vp_stage=chunk)
    for layer in spec.layer_specs:
        layer.submodules.self_attention.submodules.core_attention = CoreAttention
        if config.multi_latent_attention:
            layer.submodules.self_attention.module = PackedLatentAttention
    model = GPTModel(
        config=config,
        transformer_layer_spec=spec,
        vocab_size=-(-hf.vocab_size // grid["tp"]) * grid["tp"],
        max_sequence_length=hf.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=chunk),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=chunk),
        share_embeddings_and_output_weights=hf.tie_word_embeddings,
        position_embedding_type="rope",
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
        vp_stage=chunk,
    )
    numbers = [layer.layer_number - 1 for layer in model.decoder.layers]
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        re.sub(r"\.layers\.(\d+)\.", lambda m: f".layers.{numbers[int(m[1])]}.", name): list(tensor.shape)
        for name, tensor in tensors.items()
        if not re.search(r"local_tokens_per_expert|rotary_pos_emb\.", name)  # not weights
    }


def transformer_config(hf: Any, grid: dict[str, int]) -> TransformerConfig:
    family = hf.model_type
    settings: dict[str, Any] = {
        "num_layers": hf.num_hidden_layers,
        "hidden_size": hf.hidden_size,
        "num_attention_heads": hf.num_attention_heads,
        "ffn_hidden_size": hf.intermediate_size,
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "normalization": "RMSNorm",
        "qk_layernorm": family.startswith(("qwen3", "deepseek")),
        "add_bias_linear": False,
        "add_qkv_bias": family == "qwen2",
        "tensor_model_parallel_size": grid["tp"],
        "pipeline_model_parallel_size": grid["pp"],
        "virtual_pipeline_model_parallel_size": grid["vpp"] if grid["vpp"] > 1 else None,
        "num_layers_in_first_pipeline_stage": grid["first_layers"] or None,
        "num_layers_in_last_pipeline_stage": grid["last_layers"] or None,
        "expert_model_parallel_size": grid["ep"],
        "expert_tensor_parallel_size": grid["etp"],
        "pipeline_dtype": torch.float32,
        "use_cpu_initialization": True,
        "perform_initialization": False,
        "gradient_accumulation_fusion": False,
        **experts(hf),
    }
    if not family.startswith("deepseek"):
        groups, width = hf.num_key_value_heads, hf.head_dim if family != "qwen2" else None
        return TransformerConfig(num_query_groups=groups, kv_channels=width, **settings)
    return MLATransformerConfig(
        multi_latent_attention=True,
        q_lora_rank=hf.q_lora_rank,
        kv_lora_rank=hf.kv_lora_rank,
        qk_head_dim=hf.qk_nope_head_dim,
        qk_pos_emb_head_dim=hf.qk_rope_head_dim,
        v_head_dim=hf.v_head_dim,
        **settings,
    )


def experts(hf: Any) -> dict[str, Any]:
    layers = hf.num_hidden_layers
    if hf.model_type == "qwen3_moe":
        number, width, sparse = (
            hf.num_experts,
            hf.moe_intermediate_size,
            [i not in hf.mlp_only_layers for i in range(layers)],
        )
    elif hf.model_type == "mixtral":
        number, width, sparse = hf.num_local_experts, hf.intermediate_size, [True] * layers
    elif hf.model_type.startswith("deepseek"):
        number, width = hf.n_routed_experts, hf.moe_intermediate_size
        sparse = [i >= hf.first_k_dense_replace for i in range(layers)]
    else:
        return {}
    settings = {
        "num_moe_experts": number,
        "moe_ffn_hidden_size": width,
        "moe_layer_freq": [int(s) for s in sparse],
        "moe_token_dispatcher_type": "alltoall",
    }
    if hf.model_type.startswith("deepseek"):
        settings["moe_shared_expert_intermediate_size"] = width * hf.n_shared_experts
    if hf.model_type == "deepseek_v3":
        settings |= {"moe_router_enable_expert_bias": True, "moe_router_score_function": "sigmoid"}
    return settings
