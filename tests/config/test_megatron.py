"""policy.megatron against the Megatron that is installed."""

import dataclasses

import pytest

from areal_mega.config.megatron import OWN_FIELDS, known_fields
from areal_mega.runtime import cpu

cpu.enable()


def test_the_fields_are_those_of_the_installed_class():
    from megatron.core.transformer.transformer_config import MLATransformerConfig

    fields = {field.name for field in dataclasses.fields(MLATransformerConfig) if not field.name.startswith("_")}
    assert known_fields() == fields
    assert set(OWN_FIELDS) <= fields


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama", "qwen3_moe", "mixtral", "deepseek_v2", "deepseek_v3"])
def test_what_the_model_and_the_layout_set_cannot_be_set_beside_them(family):
    """Only switches between implementations of the same computation are left to the user."""
    import torch
    from models import tiny_model

    from areal_mega.config.options import ParallelOptions, PolicyOptions, RecomputeOptions
    from areal_mega.policy import spec
    from areal_mega.policy.families import architecture

    options = PolicyOptions(recompute=RecomputeOptions(mode="full"))
    parallel = ParallelOptions()
    hf = tiny_model(family).config
    fields = {
        **architecture(hf),
        **spec._numbers(torch.float32),
        **spec._tensor_parallel(parallel),
        **spec._pipeline_parallel(parallel, torch.float32),
        **spec._context_parallel(parallel),
        **spec._expert_parallel(parallel),
        **spec._recompute(options.recompute),
        **spec._mixture(options.moe),
        **spec._house(),
    }
    switches = {name for name in fields if name.endswith("_fusion")}
    free = {"moe_token_dispatcher_type", "moe_router_dtype", "moe_grouped_gemm", "persist_layer_norm", *switches}
    free.add("deallocate_pipeline_outputs")
    assert set(fields) - free <= set(OWN_FIELDS)
