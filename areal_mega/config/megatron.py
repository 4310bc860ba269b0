"""What this package knows of Megatron's TransformerConfig, and which of its fields ``policy.megatron`` may set."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from areal_mega.config.options import CommonOptions

_PARALLEL = "policy.parallel."
_CLASSES = {
    "model_parallel_config.py": ("ModelParallelConfig",),
    "transformer/transformer_config.py": ("TransformerConfig", "MLATransformerConfig"),
}
_MODEL = "use model.path, whose config.json says it"
_PROGRAM = "the program sets it"

# Fields that follow from other options or from the model: name to what to do.
OWN_FIELDS: dict[str, str] = {
    **dict.fromkeys(
        (
            "num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "kv_channels", "ffn_hidden_size",
            "gated_linear_unit", "activation_func", "normalization", "layernorm_epsilon", "add_bias_linear",
            "add_qkv_bias", "qk_layernorm", "num_moe_experts", "moe_ffn_hidden_size", "moe_router_topk",
            "moe_router_pre_softmax", "multi_latent_attention", "q_lora_rank", "kv_lora_rank", "qk_head_dim",
            "qk_pos_emb_head_dim", "v_head_dim", "rope_type", "rotary_base", "rotary_scaling_factor", "mscale_all_dim",
            "moe_layer_freq", "moe_shared_expert_intermediate_size", "moe_router_topk_scaling_factor",
            "moe_router_score_function", "moe_router_enable_expert_bias", "moe_router_num_groups",
            "moe_router_group_topk",
        ),
        _MODEL,
    ),
    **dict.fromkeys(("params_dtype", "pipeline_dtype", "bf16", "fp16"), "use model.dtype"),
    "tensor_model_parallel_size": f"use {_PARALLEL}tensor",
    "sequence_parallel": f"use {_PARALLEL}sequence",
    "pipeline_model_parallel_size": f"use {_PARALLEL}pipeline",
    "virtual_pipeline_model_parallel_size": f"use {_PARALLEL}virtual_pipeline",
    "num_layers_in_first_pipeline_stage": f"use {_PARALLEL}first_layers",
    "num_layers_in_last_pipeline_stage": f"use {_PARALLEL}last_layers",
    "context_parallel_size": f"use {_PARALLEL}context",
    "expert_model_parallel_size": f"use {_PARALLEL}expert",
    "expert_tensor_parallel_size": f"use {_PARALLEL}expert_tensor",
    **dict.fromkeys(
        ("recompute_granularity", "recompute_method", "recompute_num_layers", "recompute_modules"),
        "use policy.recompute",
    ),
    "moe_aux_loss_coeff": "use policy.moe.balance_coef, which no layout changes",
    "moe_router_load_balancing_type": "use policy.moe.balance_coef, which no layout changes",
    "moe_z_loss_coeff": "it would depend on the layout; leave it out",
    "moe_router_bias_update_rate": "use policy.moe.bias_update_rate",
    "moe_enable_routing_replay": "use policy.moe.replay",
    "hidden_dropout": "log-probs must not depend on chance",
    "attention_dropout": "log-probs must not depend on chance",
    **dict.fromkeys(
        (
            "variable_seq_lengths", "batch_p2p_comm", "overlap_p2p_comm", "calculate_per_token_loss",
            "perform_initialization", "init_method", "output_layer_init_method", "embedding_init_method",
            "microbatch_group_size_per_vp_stage", "finalize_model_grads_func", "grad_scale_func", "no_sync_func",
            "grad_sync_func", "param_sync_func", "timers",
        ),
        _PROGRAM,
    ),
}  # fmt: skip


@functools.cache
def known_fields() -> frozenset[str]:
    """The fields of the installed Megatron's TransformerConfig, read from its source: it is not imported yet."""
    spec = importlib.util.find_spec("megatron.core")
    assert spec is not None and spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    return frozenset(
        statement.target.id
        for file, classes in _CLASSES.items()
        for node in ast.parse((root / file).read_text()).body
        if isinstance(node, ast.ClassDef) and node.name in classes
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        if not statement.target.id.startswith("_")
    )


def megatron_problems(options: CommonOptions) -> Iterator[str]:
    """What is wrong with ``policy.megatron``, in sentences."""
    for name in options.policy.megatron:
        if name in OWN_FIELDS:
            yield f"policy.megatron.{name} cannot be set here: {OWN_FIELDS[name]}."
        elif name not in known_fields():
            close = difflib.get_close_matches(name, known_fields(), 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            yield f"policy.megatron.{name}: the installed Megatron's TransformerConfig has no such field.{hint}"
