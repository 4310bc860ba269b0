"""What an engine is started with: SGLang's server arguments and the environment of its processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig

from areal_mega.config.dtypes import DTYPES
from areal_mega.config.engine import CPU_ATTENTION, context_length
from areal_mega.config.options import RolloutOptions
from areal_mega.resharding.engine_update import LOADER

HOST = "127.0.0.1"
CPU_KV_CACHE_BYTES = 2 << 30
# The trainers live on the same GPU, and the engine starts first: SGLang's own default would take nearly all of it.
GPU_MEMORY_FRACTION = 0.3


def server_arguments(
    model_path: str,
    options: RolloutOptions,
    *,
    dtype: str,
    device: str,
    seed: int,
    port: int,
    api_key: str,
    admin_key: str,
) -> dict[str, Any]:
    """Fields of SGLang's ``ServerArgs``; entries of ``rollout.sglang`` come last and win."""
    arguments: dict[str, Any] = {
        "model_path": model_path,
        "host": HOST,
        "port": port,
        "api_key": api_key,
        "admin_api_key": admin_key,
        "dtype": dtype,
        "device": device,
        "tp_size": options.tensor,
        "ep_size": options.expert,
        "random_seed": seed,
        "context_length": context_length(options),
        "weight_version": "0",
        "custom_weight_loader": [LOADER],
        # Token ids go in and come out. Only stop strings need the engine to know the text.
        "skip_tokenizer_init": not options.stop,
        "log_level": "warning",
        "log_level_http": "error",
    }
    if device == "cpu":
        arguments |= _cpu_arguments(model_path, options, dtype)
    else:
        arguments["mem_fraction_static"] = GPU_MEMORY_FRACTION
    return arguments | options.sglang


def _cpu_arguments(model_path: str, options: RolloutOptions, dtype: str) -> dict[str, Any]:
    sequences = -(-options.prompts_per_step // options.engines) * options.samples_per_prompt
    wanted = sequences * context_length(options)
    affordable = CPU_KV_CACHE_BYTES // kv_bytes_per_token(model_path, dtype)
    return {
        "attention_backend": CPU_ATTENTION,
        "sampling_backend": "pytorch",
        "disable_cuda_graph": True,
        # Only a ceiling here: max_total_tokens sets the size of the KV cache.
        "mem_fraction_static": 0.9,
        "max_total_tokens": max(2 * context_length(options), min(wanted, affordable)),
        "max_running_requests": sequences,
        "disable_overlap_schedule": True,
        # An idle scheduler polls without pause, on a core that training needs.
        "sleep_on_idle": True,
        "chunked_prefill_size": 16384,
        "max_prefill_tokens": 16384,
    }


def kv_bytes_per_token(model_path: str, dtype: str) -> int:
    """Bytes one token holds in the KV cache: keys and values of every layer, by the folder's config.json."""
    config = AutoConfig.from_pretrained(model_path)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * DTYPES[dtype].itemsize


def engine_environment(options: RolloutOptions, device: str) -> dict[str, str]:
    """This process's environment, with the engine's thread counts set on purpose."""
    environment = {k: v for k, v in os.environ.items() if not _is_torchruns(k)}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[name] = str(options.threads)
    environment["TOKENIZERS_PARALLELISM"] = "false"
    environment["NO_PROXY"] = environment["no_proxy"] = HOST
    # The reserved tokens may lie beyond the model's longest context; no sequence reaches them.
    environment["SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"] = "1"
    if device == "cpu" and options.tensor > 1:
        environment["SGLANG_CPU_OMP_THREADS_BIND"] = _core_binding(options.tensor, options.threads)
    return environment


def visible_devices(devices: Sequence[int]) -> str:
    """CUDA_VISIBLE_DEVICES of an engine whose ranks take these GPUs, which are counted as in this process."""
    own = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return ",".join(own[device] if own != [""] else str(device) for device in devices)


def _is_torchruns(name: str) -> bool:
    """Whether torchrun set it: with the trainer's rendezvous the engine's own process groups would never form."""
    return name in _TORCHRUN_VARIABLES or name.startswith("TORCHELASTIC_")


_TORCHRUN_VARIABLES = frozenset(
    [
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "ROLE_RANK",
        "ROLE_WORLD_SIZE",
        "ROLE_NAME",
        "MASTER_ADDR",
        "MASTER_PORT",
    ]
)


def _core_binding(ranks: int, threads: int) -> str:
    """SGLang's notation of the cores of each rank, as in ``0,1|2,3``; cores repeat when there are too few."""
    cores = sorted(os.sched_getaffinity(0))
    rows = [[cores[(rank * threads + i) % len(cores)] for i in range(threads)] for rank in range(ranks)]
    return "|".join(",".join(map(str, sorted(set(row)))) for row in rows)
