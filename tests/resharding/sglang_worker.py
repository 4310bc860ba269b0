"""Loads a Hugging Face folder into SGLang's own model classes, one tensor-parallel rank after the other, on the CPU.

Only weights are loaded, so no process groups are needed: each rank's place is published to SGLang's runtime context.
Writes every rank's parameters to ``OUT/RANK.pt``.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from sglang.srt.configs.shared_experts import SharedExpertsConfig
from sglang.srt.layers.moe.utils import initialize_moe_config
from sglang.srt.runtime_context import SpawnRanks, get_model, get_parallel, publish, reset_context
from sglang.srt.server_args import ServerArgs
from transformers import AutoConfig

MODULES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3_moe",
    "mixtral": "mixtral",
    "deepseek_v2": "deepseek_v2",
    "deepseek_v3": "deepseek_v2",
}


def main(jobs: str) -> None:
    for folder, tp, ep, fused, out in json.loads(jobs):
        Path(out).mkdir(parents=True)
        for rank in range(tp):
            torch.save(parameters(folder, tp, ep, fused, rank), Path(out) / f"{rank}.pt")


def parameters(folder: str, tp: int, ep: int, fused: bool, rank: int) -> dict[str, torch.Tensor]:
    """Of one rank after SGLang's own load_weights."""
    reset_context()
    arguments = ServerArgs(
        model_path=folder,
        tp_size=tp,
        ep_size=ep,
        device="cpu",
        dtype="float32",
        skip_tokenizer_init=True,
    )
    publish(arguments, role="test", ranks=SpawnRanks(world_rank=rank))
    publish_groups()
    initialize_moe_config()
    torch.set_default_dtype(torch.float32)
    hf = AutoConfig.from_pretrained(folder)
    module = importlib.import_module(f"sglang.srt.models.{MODULES[hf.model_type]}")
    # SGLang itself fuses shared experts only on some GPUs.
    with get_model().override(shared_experts=SharedExpertsConfig(num_fused_shared_experts=int(fused))):
        model = getattr(module, hf.architectures[0])(hf)
    for parameter in model.parameters():
        parameter.data.zero_()
    model.load_weights(load_file(f"{folder}/model.safetensors").items())
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def publish_groups() -> None:
    """Groups that nothing is sent through: the models only ask for their sizes and this rank's number."""
    parallel = get_parallel()
    groups = {"pp": SimpleNamespace(rank_in_group=0, world_size=1, is_first_rank=True, is_last_rank=True)}
    for name in ("tp", "attn_tp", "moe_tp", "moe_ep"):
        rank, size = getattr(parallel, f"{name}_rank"), getattr(parallel, f"{name}_size")
        groups[name] = SimpleNamespace(rank_in_group=rank, world_size=size, cpu_group=None)
    parallel.override_permanently(**{f"{name}_group": group for name, group in groups.items()})


if __name__ == "__main__":
    main(sys.argv[1])
