"""Seconds of generation and training from a model's numbers and a GPU's rates: a roofline with efficiencies.

- A step of decoding reads all weights and the cache of every running sequence once, and multiplies each sequence's
  token with the weights: ``overhead + max(bytes / bandwidth, FLOP / peak)``, divided over the engine's GPUs.
- A forward pass is 2 FLOP for each parameter and token, and 2 q s a layer for causal attention over s tokens, with q
  the width of all heads. Training is three of them, and the proximal log-probs one more.

The efficiencies are what such systems reach in practice, not constants of nature; all can be set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from areal_mega.resharding.layouts import file_layout

_BYTES = 2  # of a bfloat16 number


@dataclass(frozen=True)
class Gpu:
    """Published peaks: FLOP/s (dense bfloat16), bytes/s, bytes."""

    flops: float
    bandwidth: float
    memory: float


GPUS = {
    "h800": Gpu(989e12, 3.35e12, 80e9),
    "h100": Gpu(989e12, 3.35e12, 80e9),
    "h200": Gpu(989e12, 4.8e12, 141e9),
    "a100": Gpu(312e12, 2.04e12, 80e9),
}


@dataclass(frozen=True)
class Costs:
    """Of one model on one kind of GPU.

    parameters: active ones of a token, and all of them. cache_bytes: of a token. attention: q * layers.
    tensor: GPUs of an engine. training, decoding: share of the peak FLOP/s and of the bandwidth that are reached.
    overhead: seconds of a decoding step beside the GPU's work. memory: share of a GPU's memory that the engine has.
    """

    gpu: Gpu
    active: float
    parameters: float
    cache_bytes: float
    attention: float
    tensor: int = 1
    training: float = 0.4
    decoding: float = 0.6
    overhead: float = 0.006
    memory: float = 0.8

    @classmethod
    def of(cls, hf: Any, gpu: Gpu, **settings: Any) -> Costs:
        """hf: a model's Hugging Face config, or one of `areal_mega.resharding.known_models`."""
        parameters = file_layout(hf).numel
        head = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
        layers = hf.num_hidden_layers
        return cls(
            gpu,
            active=parameters - _resting(hf),
            parameters=parameters,
            cache_bytes=2 * layers * hf.num_key_value_heads * head * _BYTES,
            attention=float(layers * hf.num_attention_heads * head),
            **settings,
        )

    @property
    def cache_tokens(self) -> int:
        """Tokens that an engine's cache holds."""
        free = self.tensor * self.gpu.memory * self.memory - _BYTES * self.parameters
        return max(0, int(free / self.cache_bytes))

    def decode(self, sequences: int, context: float) -> float:
        """Seconds in which each of an engine's sequences gets one token; context: tokens of all of them."""
        read = _BYTES * self.parameters + self.cache_bytes * context
        flop = 2 * self.active * sequences + 4 * self.attention * context
        gpu = self.gpu
        return (
            self.overhead
            + max(read / (gpu.bandwidth * self.decoding), flop / (gpu.flops * self.training)) / self.tensor
        )

    def prefill(self, context: float) -> float:
        """Seconds in which an engine computes the cache of so many tokens again."""
        return 2 * self.active * context / (self.tensor * self.gpu.flops * self.training)

    def train(self, lengths: list[int], gpus: int, recompute: bool = True) -> float:
        """Seconds of a training step on samples of these lengths. recompute: the proximal log-probs as well."""
        forward = sum(2 * self.active * n + 2 * self.attention * n * n for n in lengths)
        return (4 if recompute else 3) * forward / (gpus * self.gpu.flops * self.training)


def _resting(hf: Any) -> int:
    """Parameters of the experts that a token is not sent to."""
    experts = getattr(hf, "num_experts", None) or getattr(hf, "num_local_experts", None) or 0
    chosen = getattr(hf, "num_experts_per_tok", 2 if experts else 0)
    width = getattr(hf, "moe_intermediate_size", None) or hf.intermediate_size
    return (experts - chosen) * 3 * width * hf.hidden_size * hf.num_hidden_layers
