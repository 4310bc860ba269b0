"""From a Hugging Face config.json to Megatron's TransformerConfig and layer specification.

The config is put together from one small piece for each concern: the model, its numbers, each kind of parallelism,
recompute, mixture of experts, what the house always does, and last the user's own fields.
"""

from __future__ import annotations

import dataclasses
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import MLATransformerConfig
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from areal_mega.config.divisibility import layout_problems
from areal_mega.config.errors import UserError
from areal_mega.config.options import MoEOptions, ParallelOptions, PolicyOptions, RecomputeOptions
from areal_mega.policy.attention import PackedAttention
from areal_mega.policy.families import FAMILIES, architecture, is_latent, problems
from areal_mega.policy.latent_attention import PackedLatentAttention
from areal_mega.policy.mixture import PackedMoELayer, PackedRouter
from areal_mega.runtime import extensions

Fields = dict[str, Any]

NEED_TRANSFORMER_ENGINE = {"moe_act", "mla_up_proj", "layernorm"}


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
    found = problems(hf)
    if found:
        raise UserError(f"{path}: {'; '.join(found)}")
    return hf


def classifier_config(hf: PretrainedConfig) -> PretrainedConfig:
    """The config of the same body with a value head, as transformers' sequence classifier of one label.

    Where padding and the end of an answer are the same token, transformers would take the logit of the token before the
    end for that of the whole; then the config names no padding, and it refuses batches of several sequences instead.
    """
    classifier = deepcopy(hf)
    classifier.architectures = [MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[hf.model_type]]
    classifier.num_labels = 1
    ends = hf.eos_token_id if isinstance(hf.eos_token_id, list) else [hf.eos_token_id]
    if hf.pad_token_id in ends:
        classifier.pad_token_id = None
    return classifier


def transformer_config(
    hf: PretrainedConfig, options: PolicyOptions, parallel: ParallelOptions, dtype: torch.dtype
) -> TransformerConfig:
    """Megatron's description of the model in the layout ``parallel``, that of the process groups.

    Raises:
        UserError: the layout does not divide the model, or Megatron refuses a field of policy.megatron.
    """
    found = list(layout_problems(hf.to_dict(), parallel))
    if found:
        raise UserError("; ".join(found))
    fields = {
        **architecture(hf),
        **_numbers(dtype),
        **_tensor_parallel(parallel),
        **_pipeline_parallel(parallel, dtype),
        **_context_parallel(parallel),
        **_expert_parallel(parallel),
        **_recompute(options.recompute),
        **(_mixture(options.moe) if "num_moe_experts" in architecture(hf) else {}),
        **_house(),
    }
    cls = MLATransformerConfig if is_latent(hf) else TransformerConfig
    known = {field.name for field in dataclasses.fields(cls)}
    try:
        return cls(**{**fields, **options.megatron})
    except (ValueError, AssertionError, TypeError) as error:
        unknown = [name for name in options.megatron if name not in known]
        if not options.megatron or unknown:
            raise
        raise UserError(f"Megatron refuses policy.megatron.{options.megatron}: {error}") from error


def _numbers(dtype: torch.dtype) -> Fields:
    return {"params_dtype": dtype, "bf16": dtype == torch.bfloat16}


def _tensor_parallel(parallel: ParallelOptions) -> Fields:
    return {"tensor_model_parallel_size": parallel.tensor, "sequence_parallel": parallel.sequence}


def _pipeline_parallel(parallel: ParallelOptions, dtype: torch.dtype) -> Fields:
    stages, chunks = parallel.pipeline, parallel.virtual_pipeline
    return {
        "pipeline_model_parallel_size": stages,
        "virtual_pipeline_model_parallel_size": chunks if chunks > 1 else None,
        "num_layers_in_first_pipeline_stage": parallel.first_layers,
        "num_layers_in_last_pipeline_stage": parallel.last_layers,
        "pipeline_dtype": dtype,
        "variable_seq_lengths": stages > 1,
        # The interleaved schedule with batched messages gives wrong results (megatron-core 0.16.1), and hangs with
        # variable lengths unless messages overlap with computation.
        "batch_p2p_comm": False,
        "overlap_p2p_comm": chunks > 1,
        "deallocate_pipeline_outputs": stages > 1,
    }


def _context_parallel(parallel: ParallelOptions) -> Fields:
    return {"context_parallel_size": parallel.context}


def _expert_parallel(parallel: ParallelOptions) -> Fields:
    return {
        "expert_model_parallel_size": parallel.expert,
        "expert_tensor_parallel_size": parallel.expert_tensor or parallel.tensor,
        "moe_token_dispatcher_type": "alltoall",  # a dense model too must name one that allows variable lengths
    }


def _recompute(options: RecomputeOptions) -> Fields:
    if options.mode == "full":
        return {
            "recompute_granularity": "full",
            "recompute_method": options.method,
            "recompute_num_layers": options.layers,
        }
    if options.mode == "selective":
        engine = NEED_TRANSFORMER_ENGINE.intersection(options.modules)
        if engine and not extensions.installed("transformer_engine"):
            raise UserError(
                f"policy.recompute.modules names {', '.join(sorted(engine))}, which Megatron can compute again with "
                "TransformerEngine only; install it, or leave them out"
            )
        return {"recompute_granularity": "selective", "recompute_modules": list(options.modules)}
    return {}


def _mixture(options: MoEOptions) -> Fields:
    return {
        # The auxiliary loss is our router's: one that does not depend on how the batch is cut.
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_router_bias_update_rate": options.bias_update_rate,
        "moe_router_dtype": "fp32",
        "moe_grouped_gemm": extensions.transformer_engine(),
        "moe_permute_fusion": extensions.transformer_engine(),
    }


def _house() -> Fields:
    return {
        # The losses are normalised by global counts already: Megatron must divide neither by micro-batches
        # nor by data-parallel ranks.
        "calculate_per_token_loss": True,
        # Weights are loaded. Initialisation still has to run, because it marks the parameters that are
        # split over TP ranks, and the global gradient norm relies on these marks.
        "perform_initialization": True,
        "init_method": _leave,
        "output_layer_init_method": _leave,
        "embedding_init_method": _leave,
        "gradient_accumulation_fusion": False,
        "masked_softmax_fusion": False,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "apply_rope_fusion": False,
        "persist_layer_norm": False,
    }


def layer_spec(config: TransformerConfig, chunk: int | None) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage (of its model chunk, where it has several): Megatron's own, with packed
    attention and our norm, router and latent attention.

    Where TransformerEngine is, its linear layers are used; they know fp8.
    """
    engine = extensions.transformer_engine()
    block = get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization="RMSNorm", vp_stage=chunk)
    for layer in block.layer_specs:
        parts = layer.submodules
        parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
        attention = parts.self_attention
        attention.submodules.core_attention = PackedAttention
        if config.multi_latent_attention:
            attention.module = PackedLatentAttention
            attention.submodules.q_layernorm = attention.submodules.kv_layernorm = RMSNorm
        elif config.qk_layernorm:
            attention.submodules.q_layernorm = attention.submodules.k_layernorm = RMSNorm
        if parts.mlp.module is MoELayer:
            parts.mlp.module = PackedMoELayer
            parts.mlp.submodules.router = PackedRouter
        if engine:
            _use_transformer_engine(layer, config)
    block.layer_norm = RMSNorm
    return block


def _use_transformer_engine(layer: ModuleSpec, config: TransformerConfig) -> None:
    """TransformerEngine's linear layers and grouped experts in the place of Megatron's own, under the same names."""
    from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

    provider = TESpecProvider()
    swap = {
        ColumnParallelLinear: provider.column_parallel_linear(),
        RowParallelLinear: provider.row_parallel_linear(),
    }

    def visit(submodules: Any) -> None:
        for field in dataclasses.fields(submodules):
            part = getattr(submodules, field.name)
            if isinstance(part, ModuleSpec):
                if dataclasses.is_dataclass(part.submodules):
                    visit(part.submodules)
            elif isinstance(part, type) and part in swap:
                setattr(submodules, field.name, swap[part])

    visit(layer.submodules)
    if config.num_moe_experts and isinstance(layer.submodules.mlp, ModuleSpec):
        mlp = layer.submodules.mlp
        if mlp.module is PackedMoELayer:
            module, submodules = provider.grouped_mlp_modules(config.moe_grouped_gemm, False)
            mlp.submodules.experts = ModuleSpec(module=module, submodules=submodules)


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm with the constructor that Megatron's specifications call.

    Under sequence parallel each TP rank sees some of the tokens; the mark makes Megatron add up their gradients.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def _leave(weight: torch.Tensor) -> None:
    """An initialisation that leaves the weight as it is."""
